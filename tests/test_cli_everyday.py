"""What people type: settings behind another option, paths from home, output to a disk that is full, Ctrl-C at once."""

import contextlib
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from short_runs import CONFIGS, config, digits, reports

from hyperopt_id import cli, user_cache
from hyperopt_id.build.tasks import data_root
from hyperopt_id.config import from_dict, load, to_dict
from hyperopt_id.options import Parser, add_options

HOME = "/home/somebody"
FILES = [CONFIGS / "csv.yaml", CONFIGS / "Ours_LR.yaml"]


@pytest.mark.parametrize(
    "command", [["train", "-c", "a.yaml", "-n", "first"], ["replay", "runs/first", "-n", "second"]]
)
def test_settings_behind_another_option_are_told_their_place(command, capsys):
    with pytest.raises(SystemExit, match="2"):
        cli.main([*command, "inner.updates=100", "task.splits=[1, 2, 3]"])
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.endswith("settings stand directly behind -s, as in -s inner.updates=100 'task.splits=[1, 2, 3]'")


def test_other_words_are_unknown_as_ever(capsys):
    parser = Parser()
    add_options(parser, "set", "name")
    assert parser.parse_args(["-n", "first", "-s", "a=1", "b=2"]).set == ["a=1", "b=2"]
    for words in (["--sead=3"], ["-n", "first", "second"]):
        with pytest.raises(SystemExit, match="2"):
            parser.parse_args(words)
        assert f"unrecognized arguments: {words[-1]}" in capsys.readouterr().err


PATHS = {
    "task.path": lambda config: config.task.path,
    "task.model.init_from": lambda config: config.task.model.init_from,
    "data_root": lambda config: config.data_root,
    "log.dir": lambda config: config.log.dir,
}


@pytest.mark.parametrize("key", PATHS)
@pytest.mark.parametrize(
    ("given", "meant"), [("~/a/b.csv", f"{HOME}/a/b.csv"), ("a~/b", "a~/b"), ("a/~/b", "a/~/b"), ("~a", "~a")]
)
def test_paths_of_a_config_may_begin_at_home(key, given, meant, monkeypatch):
    monkeypatch.setenv("HOME", HOME)
    others = [] if key == "task.path" else ["task.path=a.csv"]
    config = load(FILES, [*others, f"{key}={given}"])
    assert PATHS[key](config) == meant
    assert from_dict(to_dict(config)) == config


def test_theta_may_be_at_home_and_names_keep_their_tilde(monkeypatch):
    monkeypatch.setenv("HOME", HOME)
    config = load([CONFIGS / "digits.yaml", CONFIGS / "MuLO.yaml"], ["space.theta.init=~/t.pt", "log.name=~/x"])
    assert config.space["theta"].init == f"{HOME}/t.pt"
    assert config.log.name == "~/x"


def test_folders_that_variables_name_may_begin_at_home(monkeypatch):
    monkeypatch.setenv("HOME", HOME)
    monkeypatch.setenv("HYPEROPT_ID_DATA", "~/data")
    monkeypatch.setenv("HYPEROPT_ID_CACHE", "~/cache")
    assert data_root(load([CONFIGS / "digits.yaml", CONFIGS / "Ours_LR.yaml"])) == Path(HOME, "data")
    assert user_cache.folder() == Path(HOME, "cache")


@pytest.mark.parametrize("command", [["train", *config("digits", "Ours_LR"), "--print-config"], ["cache", "--list"]])
def test_what_was_asked_for_is_written_or_an_error(command, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HYPEROPT_ID_CACHE", str(tmp_path))
    with open("/dev/full", "w") as full, contextlib.redirect_stdout(full):
        status = cli.main(command)
    assert (status, capsys.readouterr().err) == (2, "error: No space left on device\n")


def test_a_run_does_not_depend_on_what_it_says(tmp_path):
    with open("/dev/full", "w") as full, contextlib.redirect_stdout(full):
        assert cli.train(digits(tmp_path)) == 0


@pytest.mark.parametrize(("before", "status"), [("default_int_handler", -signal.SIGINT), ("SIG_IGN", 7)])
def test_ctrl_c_while_torch_is_loaded_is_quiet(before, status):
    """And stays ignored where it was, as in the background of a script."""
    program = f"""
import os, runpy, signal, sys
signal.signal(signal.SIGINT, signal.{before})
class Loading:
    def find_spec(name, path, target=None):
        if name == "hyperopt_id":
            os.kill(os.getpid(), signal.SIGINT)
            os._exit(7)
sys.meta_path.insert(0, Loading)
runpy.run_path({str(CONFIGS.parent / "train.py")!r}, run_name="__main__")
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (status, b"", b"")


def test_a_resume_says_what_it_misses_once(tmp_path, capsys):
    assert cli.train(digits(tmp_path)) == 0
    run = tmp_path / "run"
    before = reports(run)
    shutil.rmtree(run / "checkpoints")
    (run / "summary.json").unlink()
    (run / "identity.json").write_text("x")
    assert cli.train(["--resume", str(run)]) == 0
    log = (run / "log.txt").read_text()
    assert log.count(f"there is no checkpoint in {run}: the run starts from its beginning") == 1
    assert [said.count("identity.json: is no JSON") for said in (log, capsys.readouterr().err)] == [1, 1]
    assert [report["loss/test"] for report in reports(run)] == [report["loss/test"] for report in before]
