"""The command lines of searches: which config they mean, and which directory."""

import os
import subprocess
import sys

import pytest
from short_runs import CONFIGS, TINY, into
from short_runs import config as files

from baselines import arguments, asha, pbt
from hyperopt_id import config as configs
from hyperopt_id.config import dump


def options(*given):
    return arguments.parser("A search.").parse_args([*given, "-s", *TINY])


def test_a_data_set_alone_means_plain_training_on_the_training_set():
    config = arguments.load(options(*files("digits")))
    assert (config.algorithm, config.task.train_on) == ("Random_TrainingSetOnly", "train")
    assert config.hypergradient.engine == "none"
    tuned = arguments.load(options(*files("digits", "Ours_LR_Momentum"), "--seed", "3", "--threads", "1"))
    assert (tuned.algorithm, tuned.hypergradient.engine, tuned.seed) == ("Ours_LR_Momentum", "neumann", 3)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([], "no config: name at least one file"),
        (files("digits", "Random"), r"training must not see, but Random trains on train\+validation"),
        ([*files("digits"), "-s", "task.validation_fraction=0"], "give task validation rows"),
        ([*files("digits"), "-s", "report.splits=[test]"], "and report.splits validation"),
    ],
)
def test_a_search_needs_an_unseen_validation_set(given, said):
    with pytest.raises(ValueError, match=said):
        arguments.load(options(*given))


def test_any_config_can_be_checked():
    arguments.check(arguments.load(options(*files("digits"))))
    with pytest.raises(ValueError, match="which training must not see, but Random trains on"):
        arguments.check(configs.load([CONFIGS / "digits.yaml", CONFIGS / "Random.yaml"], TINY))


@pytest.mark.parametrize("command", [asha, pbt])
def test_without_ray(command, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray.tune", None)
    assert arguments.main(command.run, [*files("digits"), *into(tmp_path / "run"), "-s", *TINY]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: Ray is needed: python -m pip install -c constraints.txt -e '.[baselines]' (")
    assert said.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_searches_can_be_imported_without_ray():
    code = "import sys; sys.modules['ray'] = None; import baselines.asha, baselines.pbt, baselines.cluster"
    subprocess.run([sys.executable, "-c", code], cwd=CONFIGS.parent, check=True)


def test_a_directory_is_named_after_what_is_searched():
    config = arguments.load(options(*files("digits", "Ours_LR"), "-l", "there", "-n", "it"))
    path = arguments.directory(options(), config, "asha")
    assert path.parts == ("there", "digits_Ours_LR_asha", "it")


def test_resume_means_the_directory_or_the_newest_of_the_group(tmp_path):
    given = [*files("digits"), "-l", str(tmp_path), "-g", "group"]
    config = arguments.load(options(*given))
    for age, name in enumerate(("newer", "older")):
        (tmp_path / "group" / name).mkdir(parents=True)
        (tmp_path / "group" / name / "config.yaml").write_text(dump(config))
        os.utime(tmp_path / "group" / name / "config.yaml", (1e9 - age, 1e9 - age))
    again = options(*given, "--resume")
    assert arguments.directory(again, config, "asha").name == "newer"
    named = [*files("digits"), *into(tmp_path / "group" / "older"), "--resume"]
    assert arguments.directory(options(*named), arguments.load(options(*named)), "asha").name == "older"
    other = options(*files("digits"), "-l", str(tmp_path), "-g", "other", "--resume")
    with pytest.raises(ValueError, match=r"there is no search in .*other; leave --resume out"):
        arguments.directory(other, arguments.load(other), "asha")


def test_a_search_goes_on_with_its_own_config_alone(tmp_path):
    config = arguments.load(options(*files("digits")))
    (tmp_path / "config.yaml").write_text(dump(config))
    arguments.check_config(tmp_path, config)
    with pytest.raises(ValueError, match="made with another config: seed: 0 -> 1; start a new one instead"):
        arguments.check_config(tmp_path, arguments.load(options(*files("digits"), "--seed", "1")))


def test_mistakes_and_interruptions_have_their_exit_status(capsys):
    def mistake(given):
        raise ValueError("this was wrong")

    def interruption(given):
        raise KeyboardInterrupt

    assert arguments.main(lambda given: None, []) == 0
    assert arguments.main(mistake, []) == 2
    assert capsys.readouterr().err == "error: this was wrong\n"
    assert arguments.main(interruption, []) == 130
    assert capsys.readouterr().err == "stopped; the same command with --resume goes on\n"
