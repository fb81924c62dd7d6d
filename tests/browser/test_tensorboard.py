"""A run group in TensorBoard, as people see it."""

import pytest
from short_runs import ENGINES, POPULATIONS, summary, train


@pytest.fixture
def group(tmp_path):
    tuned = train(tmp_path / "digits/tuned", *ENGINES["neumann"], *POPULATIONS["vmap"], "algorithm=Ours_LR_Momentum")
    fixed = train(tmp_path / "digits/fixed", *ENGINES["none"], "population.runs=2", "algorithm=Random")
    return {"tuned": tuned, "fixed": fixed}


RUNS = [*(f"digits/tuned/member_{m:02d}" for m in range(3)), *(f"digits/fixed/member_{m:02d}" for m in range(2))]


@pytest.mark.parametrize("tag", ["Loss/Test", "Loss/Validation", "Accuracy/Test"])
def test_the_scalars_of_every_run_are_shown(tag, group, tensorboard, browser):
    browser.open(f"{tensorboard}?tagFilter={tag}#timeseries")
    browser.wait_for(*RUNS, tag)
    for directory in group.values():
        browser.wait_for(*(f"{value:.4f}".rstrip("0") for value in summary(directory)["final"][tag.lower()]))
    assert browser.errors() == []


def test_hparams_has_hyperparameters_and_final_losses(group, tensorboard, browser):
    browser.open(f"{tensorboard}#hparams")
    browser.wait_for("algorithm", "Ours_LR_Momentum", "Random", "momentum", "Loss/Test", "Loss/Validation")
    for directory in group.values():
        browser.wait_for(*(f"{value:.5g}" for value in summary(directory)["final"]["loss/test"]))
    assert browser.errors() == []
