r"""Text from files (names of data sets, algorithms, settings) in what is written: paths, LaTeX, Markdown and figures.

Whoever wrote a run directory chose these names, so none of them is trusted: each format has its one function here, and
what it returns is a text of one line that means itself and nothing else in that format.
"""

import hashlib
import os
import re
import unicodedata
from pathlib import Path

LONGEST = 120  # letters of a name that are shown
LABEL, TITLE = 36, 60  # letters of a name beside a figure, and above it
COMPONENT = 80  # letters of a file's name
LATEX = {
    **{letter: rf"\{letter}" for letter in "&%_#${}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "×": r"$\times$",
    "±": r"$\pm$",
    "–": "--",
    "−": "$-$",
    "∞": r"$\infty$",
    "θ": r"$\theta$",
    "…": r"\dots{}",
}
_MARKDOWN = re.compile(r"([\\`*\[\]<>|~$]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9]))")


def printable(text: str, longest: int | None = LONGEST) -> str:
    """In one line, without control and formatting characters, and of at most so many letters."""
    seen = "".join(" " if unicodedata.category(letter)[0] in "CZ" else letter for letter in text)
    return seen if longest is None or len(seen) <= longest else seen[: longest - 1] + "…"


def file_component(name: str) -> str:
    """A file's name, or a part of it, for any text: letters, digits and `._-`, not hidden, and neither `.` nor `..`.

    A name that has to be changed for it gets an ending that follows from the whole of it, so that different names stay
    different files.
    """
    plain = re.sub(r"[^A-Za-z0-9._-]+", "_", name).lstrip(".-")[:COMPONENT]
    if plain == name and name:
        return name
    return f"{plain or 'unnamed'}-{hashlib.sha256(name.encode('utf-8', 'surrogatepass')).hexdigest()[:8]}"


def inside(folder: Path, component: str) -> Path:
    """The file of that name in the folder; what would lie anywhere else is a fault of the caller."""
    path = folder / component
    assert Path(os.path.normpath(path)).parent == Path(os.path.normpath(folder)), f"{path} is not in {folder}"
    return path


def in_latex(text: str, longest: int | None = LONGEST) -> str:
    """For LaTeX's text mode."""
    return "".join(LATEX.get(letter, letter) for letter in printable(text, longest))


def in_markdown(text: str, longest: int | None = LONGEST) -> str:
    """For a paragraph or a cell of a table in Markdown."""
    return _MARKDOWN.sub(r"\\\1", printable(text, longest))


def in_figure(text: str, longest: int = TITLE) -> str:
    """For matplotlib, which takes what stands between two dollars for mathematics, and leaves a label that begins with
    an underscore out of legends."""
    shown = printable(text, longest).replace("$", r"\$")
    return f" {shown}" if shown.startswith("_") else shown
