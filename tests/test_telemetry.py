"""Laws of telemetry: numbers keep every digit, TensorBoard shows the same, and a resume leaves no seam."""

import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData  # pyright: ignore

from hyperopt_id.telemetry import Telemetry, is_finished
from hyperopt_id.telemetry.events import tag
from hyperopt_id.telemetry.measure import BUCKETS, as_json, dump, elements, measure, quantiles, typical

CONFIG = {
    "algorithm": "Ours",
    "task": {"name": "digits", "sizes": [64, 10]},
    "inner": {"lr": 0.1, "reset": False},
}


def values(runs: int, update: int) -> dict[str, Any]:
    """What a run reports: losses, a shared number, and hyperparameters of all three granularities."""
    generator = torch.Generator().manual_seed(update)

    def draw(*shape: int) -> torch.Tensor:
        return torch.rand(runs, *shape, generator=generator)

    return {
        "loss/train": draw(),
        "loss/validation": draw().double(),
        "accuracy/test": draw(),
        "unnormalized_loss/test": draw(),
        "seconds": 1.25 * update,
        "hyper/weight_decay": draw(),
        "hyper/momentum": {"layers.0.weight": draw(), "layers.0.bias": draw()},
        "hyper/lr": {"layers.0.weight": draw(7, 5), "layers.0.bias": draw(7)},
        "hypergradient/lr": draw(),
    }


def start(directory: Path, **settings: Any) -> Telemetry:
    return Telemetry(directory, CONFIG, **{"progress": "none", "total": 100, "config_text": "a: 1\n", **settings})


def report_many(telemetry: Telemetry, runs: int, updates: range) -> None:
    for update in updates:
        telemetry.report(update, 10 * update, values(runs, update))


def lines(directory: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def without_time(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in record.items() if name != "time"} for record in records]


def events(directory: Path) -> EventAccumulator:
    return EventAccumulator(str(directory), size_guidance={"scalars": 0, "histograms": 0}).Reload()


# numbers


@given(st.lists(st.floats(), min_size=1, max_size=5))
def test_a_number_keeps_its_64_bits_and_a_non_finite_one_is_null(numbers: list[float]):
    read = json.loads(dump({"x": torch.tensor(numbers, dtype=torch.float64), "y": numbers}))
    expected = [number if np.isfinite(number) else None for number in numbers]
    assert repr(read["x"]) == repr(expected)
    assert repr(read["y"]) == repr(expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.bool])
def test_a_tensor_of_any_type_is_written_exactly(dtype: torch.dtype):
    tensor = (torch.randn(4, generator=torch.Generator().manual_seed(0)) * 3).to(dtype)
    read = json.loads(dump(as_json(measure(tensor, 4), single=False)))
    assert torch.equal(torch.tensor(read, dtype=torch.float64), tensor.double())
    assert json.loads(dump(tensor)) == read


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 1), (3, 2), (2, 31), (3, 10, 37), (1, 1000)], ids=str)
def test_element_statistics_are_quantiles(shape: tuple[int, ...], dtype: torch.dtype):
    tensor = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    rows = tensor.double().flatten(1).numpy()
    columns = tensor.flatten(1).float() if dtype == torch.bfloat16 else tensor.flatten(1)
    written = as_json(elements(columns), single=shape[0] == 1)
    for name, share in {"min": 0.0, "p10": 0.1, "median": 0.5, "p90": 0.9, "max": 1.0}.items():
        expected = np.quantile(rows, share, axis=1)
        np.testing.assert_allclose(written[name], expected if shape[0] > 1 else expected[0], rtol=1e-12, atol=1e-15)


@given(st.lists(st.floats(), min_size=1, max_size=40))
def test_quantiles_over_members_rank_the_diverged_last(members: list[float]):
    ordered = np.sort(np.array(members))  # numpy puts NaN last
    low, _, median, _, high = quantiles(np.array(members))
    np.testing.assert_equal((low, high), (ordered[0], ordered[-1]))
    if len(members) % 2:
        np.testing.assert_equal(median, ordered[len(members) // 2])


def test_finite_members_keep_their_quantiles_when_others_diverge():
    alive, diverged = np.linspace(0.0, 1.0, 9), [float("nan"), float("inf")]
    assert quantiles(np.array([*alive, *diverged]))[:3].tolist() == pytest.approx([0.0, 0.125, 0.625])


@pytest.mark.parametrize("value", [2.0, [1.0, 2.0, None], {"w": 1.0, "b": 3.0}, {"w": {"min": 0, "median": 2.0}}])
def test_the_progress_line_shows_medians(value: Any):
    assert typical(value) == 2.0


# the run directory


@pytest.mark.parametrize("runs", [1, 3])
def test_metrics_hold_what_was_reported(tmp_path: Path, runs: int):
    with start(tmp_path / "a" / "b", runs=runs) as telemetry:
        for update in (1, 2):
            given_values = values(runs, update)
            returned = telemetry.report(update, 10 * update, given_values)
            record = lines(telemetry.directory)[-1]  # already on disk
            assert record == json.loads(dump(returned))
            assert list(record)[:3] == ["step", "update", "time"]
            assert (record["step"], record["update"], record["seconds"]) == (
                10 * update,
                update,
                1.25 * update,
            )
            one = (lambda tensor: tensor.tolist()) if runs > 1 else (lambda tensor: tensor.item())
            assert record["loss/train"] == one(given_values["loss/train"])
            assert record["hyper/momentum"] == {n: one(t) for n, t in given_values["hyper/momentum"].items()}
            largest = {n: one(t.flatten(1).amax(1)) for n, t in given_values["hyper/lr"].items()}
            assert {n: s["max"] for n, s in record["hyper/lr"].items()} == largest
            assert set(record["hyper/lr"]["layers.0.bias"]) == {"min", "p10", "median", "p90", "max"}


def test_zero_dimensional_tensors_are_shared_numbers(tmp_path: Path):
    with start(tmp_path, runs=3) as telemetry:
        assert telemetry.report(1, 1, {"loss/train": torch.tensor(0.5), "n": 3})["loss/train"] == 0.5


def test_a_run_directory_tells_where_it_came_from(tmp_path: Path):
    start(tmp_path, initial={"lr": torch.tensor([0.1], dtype=torch.float64)}).close()
    environment = json.loads((tmp_path / "environment.json").read_text())
    assert (tmp_path / "config.yaml").read_text() == "a: 1\n"
    assert json.loads((tmp_path / "config.json").read_text()) == CONFIG | {"start": {"lr": [0.1]}}
    assert environment["device"] == "cpu"
    assert environment["pid"] == os.getpid()
    assert environment["versions"]["torch"] == str(torch.__version__)
    assert sys.executable in environment["command"]
    start(tmp_path, resume_at=0, config_text="").close()
    again = json.loads((tmp_path / "environment.json").read_text())
    assert (tmp_path / "config.yaml").read_text() == "a: 1\n"
    assert json.loads((tmp_path / "config.json").read_text())["start"] == {"lr": [0.1]}
    assert again["previous"] == [environment]


def test_a_run_is_finished_when_it_has_a_summary(tmp_path: Path):
    summary = {
        "final": {"loss/train": torch.tensor([0.1, float("nan")])},
        "diverged": torch.tensor([False, True]),
    }
    with start(tmp_path, runs=2) as telemetry:
        assert not is_finished(tmp_path)
        telemetry.close(summary)
        telemetry.close(summary)
    assert is_finished(tmp_path)
    written = json.loads((tmp_path / "summary.json").read_text())
    assert written == {"final": {"loss/train": [float(np.float32(0.1)), None]}, "diverged": [False, True]}


def test_an_interrupted_run_is_not_finished_and_says_how_to_continue(tmp_path: Path):
    with pytest.raises(KeyboardInterrupt), start(tmp_path):
        raise KeyboardInterrupt
    assert not is_finished(tmp_path)
    assert f"stopped by KeyboardInterrupt; continue with --resume {tmp_path}" in (tmp_path / "log.txt").read_text()


def test_what_the_command_line_cannot_resume_is_not_suggested(tmp_path: Path):
    with pytest.raises(RuntimeError), start(tmp_path, config_text=""):
        raise RuntimeError("no memory")
    assert (tmp_path / "log.txt").read_text().endswith("stopped by RuntimeError: no memory\n")


@pytest.mark.parametrize("runs", [1, 3, 40])
def test_a_discarded_run_leaves_nothing_of_its_own(tmp_path: Path, runs: int):
    start(tmp_path / "new", runs=runs).discard()
    assert not (tmp_path / "new").exists()
    (tmp_path / "mine.txt").write_text("kept")
    start(tmp_path, runs=runs).discard()
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


# one writer


def test_two_runs_into_one_directory_are_refused(tmp_path: Path):
    with start(tmp_path):
        for resume_at in (None, 0):
            with pytest.raises(ValueError, match=rf"two runs into the same directory: process {os.getpid()} on"):
                start(tmp_path, resume_at=resume_at)
    start(tmp_path).close()  # nothing was reported: the directory is free again


def test_a_killed_run_frees_its_directory(tmp_path: Path):
    script = (
        "import sys, time; from hyperopt_id.telemetry import Telemetry\n"
        "t = Telemetry(sys.argv[1], {}, progress='none'); t.report(1, 10, {'x': 1.0})\n"
        "print('ready', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        with pytest.raises(ValueError, match=f"process {process.pid} on"):
            start(tmp_path)
        process.send_signal(signal.SIGKILL)
    with start(tmp_path, resume_at=1):
        assert [record["update"] for record in lines(tmp_path)] == [1]


@pytest.mark.parametrize("trace", ["metrics.jsonl", "summary.json", "checkpoints/step_000000001.pt"])
def test_a_directory_with_a_run_in_it_is_not_overwritten(tmp_path: Path, trace: str):
    (tmp_path / trace).parent.mkdir(exist_ok=True)
    (tmp_path / trace).write_text("{}\n")
    with pytest.raises(ValueError, match=r"already holds a run; continue it with --resume .* or choose another name"):
        start(tmp_path)
    assert (tmp_path / trace).read_text() == "{}\n"


def test_an_unwritable_directory_is_one_clear_line(tmp_path: Path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ValueError, match=r"log directory .*file/run cannot be written \(.+\); choose another") as error:
        start(tmp_path / "file" / "run")
    assert "\n" not in str(error.value)


# resume


@pytest.mark.parametrize("runs", [1, 2, 40])
@pytest.mark.parametrize("cut", ["clean", "half a line"])
def test_a_resumed_run_leaves_the_files_of_an_uninterrupted_one(tmp_path: Path, runs: int, cut: str):
    with start(tmp_path / "whole", runs=runs) as telemetry:
        report_many(telemetry, runs, range(1, 9))
    with start(tmp_path / "cut", runs=runs) as telemetry:
        report_many(telemetry, runs, range(1, 6))
    if cut == "half a line":
        with open(tmp_path / "cut" / "metrics.jsonl", "a") as file:
            file.write('{"step": 60, "upd')
    with start(tmp_path / "cut", runs=runs, resume_at=3) as telemetry:
        assert [record["update"] for record in lines(tmp_path / "cut")] == [1, 2, 3]
        report_many(telemetry, runs, range(4, 9))
    assert without_time(lines(tmp_path / "cut")) == without_time(lines(tmp_path / "whole"))
    times = [record["time"] for record in lines(tmp_path / "cut")]
    assert times == sorted(times)
    for whole in sorted({path.parent for path in (tmp_path / "whole").rglob("events.out.*")}):
        resumed = tmp_path / "cut" / whole.relative_to(tmp_path / "whole")
        assert scalars(resumed) == scalars(whole)


def scalars(directory: Path) -> dict[str, list[tuple[int, float]]]:
    board = events(directory)
    return {name: [(e.step, e.value) for e in board.Scalars(name)] for name in board.Tags()["scalars"]}


@pytest.mark.parametrize(("resume_at", "kept"), [(0, []), (1, [1]), (2, [1]), (3, [1, 3]), (99, [1, 3, 5])])
def test_reports_up_to_the_resumed_update_are_kept(tmp_path: Path, resume_at: int, kept: list[int]):
    with start(tmp_path) as telemetry:
        report_many(telemetry, 1, range(1, 6, 2))
    start(tmp_path, resume_at=resume_at).close()
    assert [record["update"] for record in lines(tmp_path)] == kept


def test_a_damaged_line_in_the_middle_is_named_not_dropped(tmp_path: Path):
    text = '{"step": 10, "update": 1, "time": 0.5}\n{"step": 20, "upd\n{"step": 30, "update": 3, "time": 0.7}\n'
    (tmp_path / "metrics.jsonl").write_text(text)
    with pytest.raises(ValueError, match=r"line 2 of .*metrics.jsonl is damaged"):
        start(tmp_path, resume_at=3)
    assert (tmp_path / "metrics.jsonl").read_text() == text


# TensorBoard

TAGS = {
    "loss/train": "Loss/Training",
    "loss/validation": "Loss/Validation",
    "loss/test": "Loss/Test",
    "accuracy/test": "Accuracy/Test",
    "unnormalized_loss/test": "Unnormalised_Loss/Test",
    "hyper/lr": "Hyperparameter/Lr",
    "hyper/weight_decay": "Hyperparameter/Weight_Decay",
    "hyper/momentum": "Hyperparameter/Momentum",
    "hypergradient/lr": "Hypergradient/Lr",
    "seconds": "Seconds",
}


@pytest.mark.parametrize("name", TAGS)
def test_tags(name: str):
    assert tag(name) == TAGS[name]


def expected_tags(directory_values: Mapping[str, Any]) -> tuple[set[str], set[str]]:
    scalar, histogram = set(), set()
    for name, value in directory_values.items():
        for suffix, leaf in value.items() if isinstance(value, dict) else [("", value)]:
            per_element = isinstance(leaf, torch.Tensor) and leaf.dim() > 1
            (histogram if per_element else scalar).add("/".join(filter(None, [TAGS[name], suffix])))
    return scalar, histogram


@pytest.mark.parametrize("runs", [1, 3, 32])
def test_events_show_what_metrics_hold(tmp_path: Path, runs: int):
    with start(tmp_path, runs=runs) as telemetry:
        report_many(telemetry, runs, range(1, 4))
    assert len(list(tmp_path.rglob("events.out.*"))) == runs
    for member in {0, runs - 1}:
        board = events(tmp_path if runs == 1 else tmp_path / f"member_{member:02d}")
        scalar, histogram = expected_tags(values(runs, 1))
        assert set(board.Tags()["scalars"]) == scalar
        assert set(board.Tags()["histograms"]) == histogram
        for name in ("loss/train", "hyper/weight_decay"):
            written = [(e.step, e.value) for e in board.Scalars(TAGS[name])]
            assert written == [(10 * u, values(runs, u)[name][member].item()) for u in range(1, 4)]


def test_large_populations_show_quantiles_over_members(tmp_path: Path):
    with start(tmp_path, runs=33) as telemetry:
        report_many(telemetry, 33, range(1, 3))
    assert len(list(tmp_path.rglob("events.out.*"))) == 5
    for name, share in {"min": 0.0, "p10": 0.1, "median": 0.5, "p90": 0.9, "max": 1.0}.items():
        board = events(tmp_path / f"members_{name}")
        assert board.Tags()["histograms"] == []
        shown = [e.value for e in board.Scalars("Loss/Training")]
        expected = [np.quantile(values(33, u)["loss/train"].double(), share) for u in (1, 2)]
        assert shown == pytest.approx(expected, rel=1e-6)
        medians = values(33, 2)["hyper/lr"]["layers.0.bias"].double().median(1).values
        shown = board.Scalars("Hyperparameter/Lr/layers.0.bias")[-1].value
        assert shown == pytest.approx(np.quantile(medians, share), rel=1e-6)


@pytest.mark.parametrize("size", [1, 2, 30, 31, 32, 1000])
def test_histograms_count_every_element(tmp_path: Path, size: int):
    tensor = 10.0 ** torch.linspace(-8, 0, size, dtype=torch.float64)[torch.randperm(size)]
    with start(tmp_path) as telemetry:
        telemetry.report(1, 1, {"hyper/lr": {"w": tensor[None], "same": torch.full((1, size), 0.25)}})
    board = events(tmp_path)
    shown = board.Histograms("Hyperparameter/Lr/w")[0].histogram_value
    assert (shown.min, shown.max, shown.num) == (tensor.min(), tensor.max(), size)
    assert (shown.sum, shown.sum_squares) == pytest.approx((tensor.sum().item(), tensor.square().sum().item()))
    below = [int((tensor <= limit).sum()) for limit in shown.bucket_limit]
    assert np.cumsum(shown.bucket).tolist() == below
    assert max(shown.bucket) <= 1 + np.ceil(size / BUCKETS)
    same = board.Histograms("Hyperparameter/Lr/same")[0].histogram_value
    assert (same.bucket_limit, same.bucket) == ([0.25], [size])


def test_diverged_elements_do_not_stop_the_reports(tmp_path: Path):
    tensor = torch.stack([torch.tensor([1.0, float("nan"), 2.0, float("inf")]), torch.full((4,), float("nan"))])
    with start(tmp_path, runs=2) as telemetry:
        record = telemetry.report(1, 1, {"hyper/lr": {"w": tensor}, "loss/train": tensor[:, 1]})
    assert record["loss/train"] == [None, None]
    assert (record["hyper/lr"]["w"]["min"], record["hyper/lr"]["w"]["max"]) == ([1.0, None], [None, None])
    assert events(tmp_path / "member_00").Histograms("Hyperparameter/Lr/w")[0].histogram_value.num == 2
    assert events(tmp_path / "member_01").Tags()["histograms"] == []


@pytest.mark.parametrize(("runs", "folder"), [(1, "."), (2, "member_01"), (33, "members_max")])
@pytest.mark.parametrize("finished", [True, False])
def test_the_hparams_tab_knows_config_start_values_and_outcome(tmp_path: Path, runs: int, folder: str, finished: bool):
    with start(tmp_path, runs=runs, initial={"init/lr": torch.arange(runs).double() / 2}) as telemetry:
        telemetry.report(1, 10, {"loss/test": torch.zeros(runs)})
        if finished:
            telemetry.close({})
    content = events(tmp_path / folder).summary_metadata
    sent = {
        name: HParamsPluginData.FromString(data.plugin_data.content) for name, data in content.items() if "_hp" in name
    }
    started = sent["_hparams_/session_start_info"].session_start_info.hparams
    assert {name: getattr(value, value.WhichOneof("kind")) for name, value in started.items()} == {
        "algorithm": "Ours",
        "task.name": "digits",
        "task.sizes": "[64, 10]",
        "inner.lr": 0.1,
        "inner.reset": False,
        "init/lr": (runs - 1) / 2,
    }
    assert sent["_hparams_/session_end_info"].session_end_info.status == (1 if finished else 2)


# what a person sees


@pytest.mark.parametrize("mode", ["auto", "bar", "none"])
def test_progress_on_the_terminal(tmp_path: Path, mode: str, capsys: pytest.CaptureFixture[str]):
    with start(tmp_path, progress=mode, total=4) as telemetry:
        telemetry.report(2, 20, {"loss/train": 0.5, "hyper/lr": torch.tensor([1.25e-3])})
        logging.getLogger("hyperopt_id.somewhere").warning("something odd")
        telemetry.report(4, 40, {"loss/train": 0.25, "hyper/lr": torch.tensor([1.5e-3])})
    shown, logged = capsys.readouterr().err, (tmp_path / "log.txt").read_text()
    assert "something odd" in shown
    assert "something odd" in logged
    assert ("loss/train 0.25, lr 0.0015" in shown) == (mode != "none")
    assert ("update 4/4: loss/train 0.25, lr 0.0015, 00:00 left" in logged) == (mode != "bar")
    assert ("4/4 [" in shown) == (mode == "bar")


@pytest.mark.parametrize("mode", ["bar", "auto"])
def test_without_a_total_there_is_no_end_in_sight(tmp_path: Path, mode: str, capsys: pytest.CaptureFixture[str]):
    with start(tmp_path, progress=mode, total=None) as telemetry:
        telemetry.report(1, 10, {"loss/train": 0.5})
    shown = capsys.readouterr().err
    assert "loss/train 0.5" in shown
    assert " left" not in shown
    assert "/0" not in shown
    assert ("update 1: loss/train 0.5\n" in shown) == (mode == "auto")


def test_the_time_left_follows_the_pace_since_the_first_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """100 seconds of compiling before the first report, then 2 seconds each: 94 updates take 188 seconds."""
    clock = iter([100.0, 112.0])
    with start(tmp_path) as telemetry:
        monkeypatch.setattr("hyperopt_id.telemetry.progress.time.monotonic", lambda: next(clock))
        for update in (0, 6):
            telemetry._progress.show(update, {"loss/train": 0.5})
    shown = (tmp_path / "log.txt").read_text()
    assert "update 0/100: loss/train 0.5\n" in shown
    assert "update 6/100: loss/train 0.5, 03:08 left\n" in shown


def test_logging_is_left_as_it_was(tmp_path: Path):
    logger = logging.getLogger("hyperopt_id")
    before = (logger.level, list(logger.handlers))
    with start(tmp_path):
        assert len(logger.handlers) > len(before[1])
    assert (logger.level, list(logger.handlers)) == before


def test_an_unknown_progress_mode_is_refused_and_the_directory_stays_free(tmp_path: Path):
    with pytest.raises(ValueError, match="progress must be one of auto, bar, none, not 'loud'"):
        start(tmp_path, progress="loud")
    start(tmp_path).close()


@pytest.mark.gpu
def test_numbers_from_a_gpu_equal_those_from_the_cpu():
    tensor = torch.randn(3, 200, generator=torch.Generator().manual_seed(0))
    tensor[1, 5] = float("nan")
    on_cpu, on_gpu = elements(tensor), elements(tensor.cuda())
    np.testing.assert_equal(on_gpu.quantiles, on_cpu.quantiles)
    np.testing.assert_equal(on_gpu.edges, on_cpu.edges)
    np.testing.assert_allclose(on_gpu.sums, on_cpu.sums, rtol=1e-12)
    np.testing.assert_equal(measure(tensor[:, 0].cuda(), 3), measure(tensor[:, 0], 3))


def test_a_run_that_is_continued_and_finished_was_no_failure(tmp_path: Path):
    with start(tmp_path) as telemetry:
        telemetry.report(1, 10, {"loss/test": torch.zeros(())})
    with start(tmp_path, resume_at=1) as telemetry:
        telemetry.report(2, 20, {"loss/test": torch.ones(())})
        telemetry.close({})
    content = events(tmp_path).summary_metadata["_hparams_/session_end_info"].plugin_data.content
    assert HParamsPluginData.FromString(content).session_end_info.status == 1
    assert [event.step for event in events(tmp_path).Scalars("Loss/Test")] == [10, 20]


def test_a_clock_that_is_set_back_leaves_events_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with start(tmp_path) as telemetry:
        telemetry.report(1, 10, {"loss/test": torch.zeros(())})
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now - 1e6)
    with start(tmp_path, resume_at=1) as telemetry:
        telemetry.report(2, 20, {"loss/test": torch.ones(())})
    assert [event.step for event in events(tmp_path).Scalars("Loss/Test")] == [10, 20]
    walls = [event.wall_time for event in events(tmp_path).Scalars("Loss/Test")]
    assert walls == sorted(walls)
