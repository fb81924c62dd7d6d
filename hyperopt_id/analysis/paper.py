"""All tables and figures of a study, into a folder:

    DIR/tables/<name>.md, .tex, .csv        DIR/figures/<name>_<data set>.pdf, .png

Each is made of what is there. One that lacks something is left out, and a line says what it needs.
"""

from collections.abc import Callable, Collection
from pathlib import Path

from hyperopt_id.analysis import plotting
from hyperopt_id.analysis.collect import Study
from hyperopt_id.analysis.figures import FIGURES
from hyperopt_id.analysis.names import file_component, inside
from hyperopt_id.analysis.results import TABLES
from hyperopt_id.analysis.runs import drawable
from hyperopt_id.analysis.tables import FORMATS
from hyperopt_id.telemetry.directory import write_text

Say = Callable[[str], None]
NAMES = tuple(dict.fromkeys(entry.name for entry in (*TABLES, *FIGURES)))


def listing() -> list[str]:
    """What there is, a line each."""
    tables, figures = ({entry.name: entry.shows for entry in entries} for entries in (TABLES, FIGURES))
    lines = []
    for name in NAMES:
        shows = [
            f"{kind}: {entries[name]}" for kind, entries in (("table", tables), ("figure", figures)) if name in entries
        ]
        lines.append(f"{name:<24}{'; '.join(shows)}")
    return lines


def write(study: Study, out: Path, only: Collection[str] = (), say: Say = print) -> list[Path]:
    """Write the tables and figures in `only`, or all, and return the files. `say` hears of each, and of what is
    missing. A ValueError for a name that there is none of, a folder that cannot be written, or figures without
    matplotlib."""
    check_names(only)
    drawn = [entry for entry in FIGURES if not only or entry.name in only]
    if drawn:
        plotting.matplotlib()  # before any work
    try:
        return [*write_tables(study, out / "tables", only, say), *_draw(study, out / "figures", drawn, say)]
    except OSError as error:
        raise ValueError(f"{out} cannot be written ({error.strerror}); choose another with --out DIR") from error


def check_names(only: Collection[str]) -> None:
    unknown = [name for name in only if name not in NAMES]
    if unknown:
        raise ValueError(f"there is no table or figure {unknown[0]!r}; there are {', '.join(NAMES)}")


def write_tables(study: Study, folder: Path, only: Collection[str], say: Say) -> list[Path]:
    files = []
    for entry in TABLES:
        if only and entry.name not in only:
            continue
        table = entry.make(study)
        if table is None:
            say(f"table {entry.name}: left out, it needs {entry.needs}")
            continue
        folder.mkdir(parents=True, exist_ok=True)
        for suffix, shown in FORMATS.items():
            files.append(inside(folder, f"{entry.name}.{suffix}"))
            write_text(files[-1], shown(table))
        say(f"table {entry.name}: {len(table.rows)} rows")
    return files


def _draw(study: Study, folder: Path, entries: Collection, say: Say) -> list[Path]:
    files: list[Path] = []
    if not entries:
        return files
    study = study._replace(kinds=tuple(map(drawable, study.kinds)))
    with plotting.matplotlib().rc_context(plotting.STYLE):
        for entry in entries:
            drawn = 0
            for ending, figure in entry.make(study):
                name = f"{entry.name}_{file_component(ending)}" if ending else entry.name
                files += plotting.save(figure, inside(folder, name))
                drawn += 1
            files_made = f"{drawn} drawn" if drawn else f"left out, it needs {entry.needs}"
            say(f"figure {entry.name}: {files_made}")
    return files
