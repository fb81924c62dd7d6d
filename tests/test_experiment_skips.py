"""Laws of the warnings of hyper-updates that are left out: when, for whom, and after a resume."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import hyperopt_id as hid
from hyperopt_id import checkpoint, curvature, experiment, population
from hyperopt_id.experiment_skips import left_out, note_skips
from hyperopt_id.telemetry import Telemetry

X = torch.randn(40, 4, generator=torch.Generator().manual_seed(0))
X[::7] = 0.0
DATA = hid.Dataset(X, X.sum(1).sin(), {"train": (0, 20), "validation": (20, 30), "test": (30, 40)})
SPACE = hid.Space(
    {"lr": hid.Hyper(0.01, hid.LOG10, tune=("global",)), "weight_decay": hid.Hyper(0.0), "momentum": hid.Hyper(0.5)}
)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear, self.out = nn.Linear(4, 8, bias=False), nn.Linear(8, 1)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.out(nn.functional.normalize(self.linear(inputs), dim=1))


def parts(how: Any = "loop", seeds: Any = (0,)) -> experiment.Parts:
    """Every hypergradient is NaN."""
    return hid.assemble(
        hid.supervised(DATA, Net, "mse", None),
        rule=hid.rules.sgd(),
        space=SPACE,
        engine=hid.hypergrad.neumann(2),
        curvature=curvature.exact,
        seeds=seeds,
        execution=hid.Execution(how, 2),
    )


def messages(caplog: pytest.LogCaptureFixture, members: str = "member") -> list[str]:
    return [record.getMessage() for record in caplog.records if members in record.getMessage()]


@pytest.mark.parametrize("how", ["loop", "vmap"])
def test_a_run_that_skips_everything_warns_twice(how: Any, caplog: pytest.LogCaptureFixture):
    given = parts(how, range(3))
    with caplog.at_level(logging.WARNING, "hyperopt_id"):
        summary = hid.run(given, hid.Plan(updates=110, steps_per_update=1, report_every=110, report_splits=()))
    first, often = messages(caplog)
    assert first.startswith("hyper-update 1 is left out for members 0, 1, 2: ")
    assert often.startswith("more than half of the last 100 were left out for members 0, 1, 2: ")
    assert summary["skipped_updates"].tolist() == [110] * 3


def test_a_row_of_zeros_that_comes_later_leaves_out_its_hyper_updates_alone(caplog: pytest.LogCaptureFixture):
    """Until then, and in what is trained then, the run is the one that differences make, which leaves nothing out."""
    inputs = torch.where(torch.arange(40)[:, None] == 13, 0.0, X.double() + 2.0)
    data = hid.Dataset(inputs, DATA.targets.double(), DATA.splits)
    task = hid.supervised(data, Net, "mse", 5)
    order = task.batches("train", [0], 0, 16).index
    assert order is not None
    update = int((order[:, 0] == 13).any(-1).nonzero()[0])  # with a step each
    assert update > 0

    def train(updates: int, given: Any = None) -> Any:
        parts = hid.assemble(task, rule=hid.rules.sgd(), space=SPACE, engine=hid.hypergrad.neumann(2), curvature=given)
        return hid.run(parts, hid.Plan(updates=updates, steps_per_update=1))

    with caplog.at_level(logging.INFO, "hyperopt_id"):
        before, after, later = train(update), train(update + 1), train(update + 2)
    assert caplog.text.count("curvature: exact, off by") == 3
    (message, _) = messages(caplog, "left out for")
    assert message.startswith(f"hyper-update {update + 1} is left out for member 0: the hypergradient is not finite")
    assert "take finite differences (curvature=curvature.finite_difference(), " in message
    assert [summary["skipped_updates"].item() for summary in (before, after, later)] == [0, 1, 1]
    assert before["hyper"]["lr"] == after["hyper"]["lr"] != later["hyper"]["lr"]
    differences = train(update + 1, curvature.finite_difference(1e-6, 2))
    assert not differences["skipped_updates"].any()
    assert differences["hyper"]["lr"] != after["hyper"]["lr"]
    torch.testing.assert_close(after["final"]["loss/test"], differences["final"]["loss/test"], rtol=1e-6, atol=0)


def test_a_resumed_run_warns_as_one_that_was_never_interrupted(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    def train(updates: int, resume: Any = None) -> list[str]:
        caplog.clear()
        plan = hid.Plan(updates=updates, steps_per_update=1, report_every=updates, checkpoint_every=40)
        name = "again" if resume else "run"
        with caplog.at_level(logging.WARNING, "hyperopt_id"), Telemetry(tmp_path / name, {}, progress="none") as log:
            experiment.run(parts(), plan, log, resume=resume)
        return messages(caplog)

    assert len(train(40)) == 1
    saved, update = checkpoint.load(tmp_path / "run" / "checkpoints")
    assert update == 40
    assert [message[:27] for message in train(60, saved)] == ["more than half of the last "]
    plan = hid.Plan(updates=60, steps_per_update=1)
    old = {name: value for name, value in saved.items() if name != "skips"}  # of a version that did not remember
    assert experiment.Progress.load(parts(), plan, old).skips == {}
    with pytest.raises(ValueError, match="skips"):
        experiment.Progress.load(parts(), plan, {**saved, "skips": {0: ["one"]}})


def test_a_run_in_which_nothing_is_left_out_stores_nothing_about_it():
    data = hid.Dataset(X + 1.0, DATA.targets, DATA.splits)
    given = hid.assemble(
        hid.supervised(data, Net, "mse", None), rule=hid.rules.sgd(), space=SPACE, engine=hid.hypergrad.neumann(2)
    )
    *_, progress = experiment.stages(given, hid.Plan(updates=2), None, resume=None, remember=None, began=0.0)
    assert "skips" not in progress.tree(given, 0.0)
    before = progress.chunks
    after, _ = experiment.hyper_update(given, hid.Plan(updates=3), 2, before[0], [0])
    assert after.skipped is before[0].skipped  # so that nothing is waited for


def test_members_are_counted_once_and_by_their_own_number():
    run = parts("vmap", range(3)).start()
    before = population.split(run, [[0, 1], [2, 2]], "vmap")
    after = [before[0]._replace(skipped=torch.tensor([0, 1])), before[1]._replace(skipped=torch.tensor([5, 5]))]
    assert left_out(before, after, [[0, 1], [2, 2]]) == {1: 1, 2: 5}


def test_warnings_come_at_the_first_and_each_time_that_half_of_a_hundred_is_exceeded(caplog: pytest.LogCaptureFixture):
    """60 in a row, 100 without, 60 in a row: two times more than half."""
    skips: dict[int, list[int]] = {}
    warned = []
    left = [update < 60 or update >= 160 for update in range(220)]
    with caplog.at_level(logging.WARNING, "hyperopt_id"):
        for update, out in enumerate(left):
            caplog.clear()
            skips = note_skips(skips, {7: sum(left[: update + 1])} if out else {}, update)
            recent = [u for u in range(max(0, update - 99), update + 1) if left[u]]
            assert skips.get(7, []) == recent
            warned += [update] * len(messages(caplog, "member 7"))
    assert warned == [0, 50, 210]


def test_many_members_are_one_short_line(caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING, "hyperopt_id"):
        note_skips({}, dict.fromkeys(range(200), 1), 4)
    (message,) = messages(caplog)
    assert message.startswith("hyper-update 5 is left out for members 0, 1, 2, 3, 4, 5, 6, 7 and 192 more: ")
