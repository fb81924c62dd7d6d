"""The table of experiments, and what becomes of its rows."""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
import run_all
from experiments import EXPERIMENTS, STUDY, Experiment, Part
from override_generators import generate

from baselines.lock import held
from hyperopt_id.analysis.load import load_run
from hyperopt_id.config import load

ROOT = Path(__file__).parents[2]
DATA = [  # every data set of the study, and the offline one
    *("digits", "uci_boston", "uci_concrete", "uci_energy", "uci_kin8nm", "uci_naval", "uci_power", "uci_wine"),
    *("uci_yacht", "fashion_mnist", "fashion_mnist_bn", "penn_treebank", "cifar10"),
]
CASES = [
    pytest.param(part, data, algorithm, id=f"{row.name}, {data}, {algorithm}")
    for row in EXPERIMENTS
    for part in row.parts
    for data in part.data
    for algorithm in part.algorithms
]


def dry(*arguments: str, capsys: pytest.CaptureFixture[str]) -> dict[str, list[list[str]]]:
    """The commands of each experiment, as words."""
    assert run_all.main(["--dry-run", *arguments]) == 0
    found: dict[str, list[list[str]]] = {}
    for line in capsys.readouterr().out.splitlines():
        if line.startswith("# "):
            name = line.removeprefix("# ")
            found[name] = []
        else:
            found[name].append(shlex.split(line))
    return found


def after(option: str, command: Sequence[str]) -> list[str]:
    """The words of one option, up to the next."""
    words = list(command[command.index(option) + 1 :]) if option in command else []
    return words[: next((place for place, word in enumerate(words) if word.startswith("-")), None)]


# The table


def test_there_are_sixteen_experiments():
    assert len(EXPERIMENTS) == len({row.name for row in EXPERIMENTS}) == 16


def test_every_data_set_has_a_table_of_all_nine_algorithms():
    assert len(STUDY) == 9
    full = [
        data for row in EXPERIMENTS for p in row.parts if p.algorithms == STUDY and not p.settings for data in p.data
    ]
    assert sorted(full) == sorted(DATA)


@pytest.mark.parametrize(
    "data, starts",
    [("uci_energy", 200), ("uci_yacht", 200), ("fashion_mnist", 100), ("penn_treebank", 50), ("cifar10", 50)],
)
def test_starts_are_those_of_the_study(data: str, starts: int):
    assert {p.starts for row in EXPERIMENTS for p in row.parts if p.algorithms == STUDY and data in p.data} == {starts}


def test_all_methods_have_a_search_of_one_data_set():
    """So that one figure can show the best of each against its cost."""
    searches = {
        (part.method, algorithm)
        for row in EXPERIMENTS
        for part in row.parts
        for algorithm in part.algorithms
        if part.method != "parallel_exec" and "uci_energy" in part.data
    }
    plain, ours = "Random_TrainingSetOnly", "Ours_LR_Momentum"
    both = {(method, algorithm) for method in ("random_search", "asha", "pbt") for algorithm in (plain, ours)}
    assert searches == both | {("bayesopt", plain)}


@pytest.mark.parametrize("part, data, algorithm", CASES)
def test_every_row_is_a_config_that_loads(part: Part, data: str, algorithm: str):
    files = [ROOT / "configs" / f"{stem}.yaml" for stem in (data, algorithm)]
    base = load(files, part.settings)
    name, *arguments = part.overrides
    for job in generate(name, base, part.starts, 0, arguments):
        load(files, [*part.settings, *job.overrides])


def test_the_page_shows_the_table(capsys: pytest.CaptureFixture[str]):
    assert run_all.main(["--list"]) == 0
    assert capsys.readouterr().out in (ROOT / "docs" / "experiments.md").read_text()


# Commands


def test_dry_run_shows_every_experiment(capsys: pytest.CaptureFixture[str]):
    found = dry("-l", "/runs", "--workers", "3", "--data-root", "/data", capsys=capsys)
    assert list(found) == [row.name for row in EXPERIMENTS]
    (energy,) = found["uci_energy"]
    given = "-c configs/uci_energy.yaml --algorithms {} --overrides natural_sgd --repetitions 200 -l /runs"
    given += " --data-root /data --workers 3 --gpus-per-task 0.0 -g uci_energy"
    assert energy == [sys.executable, "scripts/parallel_exec.py", *given.format(" ".join(STUDY)).split()]


def test_searches_have_commands_of_their_own(capsys: pytest.CaptureFixture[str]):
    found = dry("--only", "pbt", "bayesopt", "-l", "/runs", "--data-root", "/data", "--workers", "3", capsys=capsys)
    given = "-m baselines.pbt -c configs/uci_energy.yaml configs/{0}.yaml --population 200 --interval 100 -l /runs"
    given += " --data-root /data --workers 3 --gpus-per-trial 0.0 -g pbt -n uci_energy_{0}"
    algorithms = ("Random_TrainingSetOnly", "Ours_LR_Momentum")
    assert found["pbt"] == [[sys.executable, *given.format(name).split()] for name in algorithms]
    assert [after("--repetitions", command) for command in found["bayesopt"]] == [["32"]] * 12
    random = [command for command in found["bayesopt"] if "baselines.random_search" in command]
    assert [after("--trials", command) for command in random] == [["30"]] * 4 + [["16"]] * 4
    assert all("--workers" not in command and after("--threads", command) == ["3"] for command in found["bayesopt"])


def test_everything_trains_on_the_same_kind_of_device(capsys: pytest.CaptureFixture[str]):
    """On the CPU, unless GPUs are given."""
    for given, share, device in (([], ["0.0"], ["cpu"]), (["--gpus-per-task", "0.5"], ["0.5"], [])):
        for command in (command for found in dry(*given, capsys=capsys).values() for command in found):
            if "--workers" in command:
                assert (after("--gpus-per-task", command) or after("--gpus-per-trial", command)) == share
            else:
                assert after("--device", command) == device


def test_no_two_searches_share_a_directory(capsys: pytest.CaptureFixture[str]):
    found = [command for commands in dry("-l", "/runs", capsys=capsys).values() for command in commands]
    places = [(after("-g", command)[0], after("-n", command)[0]) for command in found if "-n" in command]
    assert len(places) == len(set(places)) == 12 + 2 + 2


@pytest.mark.parametrize("name", ["bayesopt", "asha", "pbt"])
def test_a_search_that_was_begun_is_resumed(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    begun = tmp_path / name / "uci_energy_Random_TrainingSetOnly"  # the first command
    begun.mkdir(parents=True)
    (begun / "config.yaml").touch()
    first, second, *_ = dry("--only", name, "-l", str(tmp_path), capsys=capsys)[name]
    assert ("--resume" in first, "--resume" in second) == (True, False)
    if name == "bayesopt":
        (tmp_path / name / "random" / "uci_power_Ours_LR_Momentum").mkdir(parents=True)
        (tmp_path / name / "random" / "uci_power_Ours_LR_Momentum" / "config.yaml").touch()
        resumed = [c for c in dry("--only", name, "-l", str(tmp_path), capsys=capsys)[name] if "--resume" in c]
        assert [after("-g", c) for c in resumed] == [["bayesopt"], ["bayesopt/random"]]


def test_a_scale_makes_fewer_starts_and_shorter_runs(capsys: pytest.CaptureFixture[str]):
    """Of whole hyper-updates of every algorithm in the command, two at least; likewise two starts."""
    found = dry("--scale", "0.05", capsys=capsys)
    amounts = {
        name: [
            (after("--repetitions", c) or after("--trials", c) or after("--population", c), after("-s", c)[-1:])
            for c in found[name]
        ]
        for name in found
    }
    assert amounts["uci_energy"] == [(["10"], ["inner.steps=200"])]
    assert amounts["cifar10"] == [(["2"], ["inner.steps=1620"])]
    assert amounts["sensitivity"] == [(["5"], ["inner.steps=200"])]
    assert amounts["asha"] == [(["50"], ["inner.steps=200"])] * 2
    assert amounts["long_diff_through_opt"][0] == (["3"], ["inner.steps=400"])  # T = 200
    assert amounts["long_diff_through_opt"][-1] == (["2"], ["inner.steps=8000"])  # T = 4000
    assert after("--interval", found["pbt"][0]) == ["10"]
    small = dry("--scale", "0.0001", "--only", "uci_energy", "long_diff_through_opt", capsys=capsys)
    assert after("-s", small["uci_energy"][0]) == ["inner.steps=20"]
    assert {after("--repetitions", command)[0] for command in small["long_diff_through_opt"]} == {"2"}


@pytest.mark.parametrize(
    "mistake, said",
    [
        (["--only", "sensitivty"], "did you mean sensitivity?"),
        (["--scale", "0"], "--scale: given 0; allowed: above 0, at most 1"),
        (["--scale", "2"], "--scale: given 2"),
        (["--workers", "0"], "--workers: given 0; allowed: 1 or more"),
        (["--scale", "0.1", "-s", "inner.updats=3"], "inner.updates"),
    ],
)
def test_mistakes_are_one_line(mistake: list[str], said: str, capsys: pytest.CaptureFixture[str]):
    assert run_all.main(["--dry-run", *mistake]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


# Running


@pytest.fixture
def three(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Experiments a, b, c, whose commands are noted instead of run; `fails` names groups that end with status 1."""
    rows = tuple(Experiment(name, "", "", (Part(("digits",), ("Random",), 4),)) for name in "abc")
    noted = SimpleNamespace(ran=[], fails=set(), interrupts=set())

    def execute(command: Sequence[str]) -> int:
        (name,) = after("-g", command)
        noted.ran.append(name)
        if name in noted.interrupts:
            raise KeyboardInterrupt
        return int(name in noted.fails)

    monkeypatch.setattr(run_all, "EXPERIMENTS", rows)
    monkeypatch.setattr(run_all, "execute", execute)
    return noted


def test_one_that_fails_does_not_stop_the_others(
    three: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    three.fails = {"b"}
    assert run_all.main(["-l", str(tmp_path)]) == 1
    assert three.ran == ["a", "b", "c"]
    said = capsys.readouterr()
    assert "failed, as said above: b;" in said.err
    assert "2 of 3 experiments are finished" in said.out


def test_what_is_finished_is_not_run_again(three: SimpleNamespace, tmp_path: Path):
    three.fails = {"b"}
    run_all.main(["-l", str(tmp_path)])
    three.fails, three.ran = set(), []
    assert run_all.main(["-l", str(tmp_path), "--workers", "7"]) == 0  # however many workers
    assert three.ran == ["b"]
    assert run_all.main(["-l", str(tmp_path), "--scale", "0.5", "--only", "a"]) == 0
    assert three.ran == ["b", "a"]  # another scale is another matter


def test_ctrl_c_ends_it(three: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    three.interrupts = {"b"}
    assert run_all.main(["-l", str(tmp_path)]) == 130
    assert three.ran == ["a", "b"]
    assert "the same command continues" in capsys.readouterr().err


def test_an_experiment_end_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    row = Experiment("trial", "", "", (Part(("digits",), ("Random",), 40, settings=("inner.compile=off",)),))
    monkeypatch.setattr(run_all, "EXPERIMENTS", (row,))
    assert run_all.main(["-l", str(tmp_path), "--scale", "0.05", "--workers", "1"]) == 0
    result = load_run(tmp_path / "trial" / "Random_000-001")
    assert not result.diverged.any()


def test_an_experiment_that_is_done_elsewhere_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with held(tmp_path / "one" / "run_all.lock", ""):
        assert not run_all.complete("one", [([sys.executable, "-c", "1/0"], [])], tmp_path)
    assert capsys.readouterr().err.startswith("one: process ")
    assert run_all.complete("one", [([sys.executable, "-c", "1"], [])], tmp_path)
