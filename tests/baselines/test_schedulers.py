"""Ray's schedulers after an interruption: what they are told again. Ray itself is not needed for that."""

import pickle
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest

from baselines import tuning
from baselines.schedulers import Asha, Population
from hyperopt_id.telemetry.search import SearchLog


def scheduler(directory: Path) -> Asha:
    return Asha(directory, metric="score", mode="min", time_attr="step", max_t=30, grace_period=6, reduction_factor=4)


@pytest.mark.parametrize("known", [1, 40, 100])
def test_what_the_log_tells_is_decided_once(tmp_path, monkeypatch, known):
    """A scheduler that is told the log decides as one that has seen all of it, though trials that had been logged are
    forgotten, and trained again in another order; and wherever the search is continued from."""
    chance, whole, seen = random.Random(known), scheduler(tmp_path / "whole"), []
    going = {f"trial_{number:04d}": 0 for number in range(40)}
    for name in going:
        whole.on_trial_add(None, name)
    while going:
        name = chance.choice(list(going))
        going[name] += 3
        result = {"step": going[name], "score": chance.random()}
        seen.append((name, result, whole.on_trial_result(None, name, result)))
        if seen[-1][-1] == whole.STOP:
            del going[name]
    assert len(seen) > 120

    log = SearchLog(tmp_path / "log")
    counts = {
        "diverged": False,
        "explored": None,
        "repetition": 0,
        "gradients": 0,
        "seconds": 0.0,
        "hyper": {},
        "member": 0,
    }
    for number, (name, result, _) in enumerate(seen[:known]):
        of_run = {"run": f"runs/{name}", "step": result["step"], "loss/validation": result["score"]}
        log.append({**counts, "evaluation": number, **of_run})
    monkeypatch.chdir(tmp_path)
    again = pickle.dumps(scheduler(Path("log")))
    monkeypatch.chdir("/")
    again = pickle.loads(again)
    forgotten = sorted(seen[:known], key=lambda event: event[0], reverse=True)
    for name, result, decision in [*forgotten, *seen[known:]]:
        again.on_trial_add(None, name)
        assert again.on_trial_result(None, name, result) == decision


def test_a_restored_scheduler_knows_the_scores_of_the_checkpoints():
    scheduler = Population(time_attr="step", metric="score", mode="min", custom_explore_fn=dict)
    result = SimpleNamespace(metrics={"step": 300, "score": 0.5})
    manager = SimpleNamespace(checkpoint_config=SimpleNamespace(num_to_keep=4), latest_checkpoint_result=result)
    trial = MagicMock(checkpoint="there", config={})
    trial.run_metadata.checkpoint_manager = manager
    scheduler.on_trial_add(SimpleNamespace(search_alg=None), trial)
    state = scheduler._trial_state[trial]
    assert (state.last_score, state.last_checkpoint) == (-0.5, "there")
    assert state.last_train_time == state.last_perturbation_time == 300


@pytest.mark.parametrize(("trials", "of"), [(None, ""), (3, " of 3")])
def test_an_interruption_says_how_far_the_search_is(tmp_path, trials, of):
    for number in range(3):
        (tmp_path / "runs" / f"trial_{number:04d}").mkdir(parents=True)
    for number in range(2):
        (tmp_path / "runs" / f"trial_{number:04d}" / "summary.json").write_text("{}")
    search: Any = SimpleNamespace(directory=tmp_path, trials=trials)
    stopped: Any = SimpleNamespace(errors=[])
    with pytest.raises(
        KeyboardInterrupt, match=rf"^Ray was stopped when 2{of} trials were finished; --resume goes on$"
    ):
        tuning._check_over(search, tuning.Budget(tmp_path, {}), stopped)
