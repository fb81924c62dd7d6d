"""TensorBoard events against TensorBoard's own reader, and runs of the published code."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from logs import NAN, EventLog, published
from short_runs import train
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.compat.proto.summary_pb2 import HistogramProto, Summary  # pyright: ignore
from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c
from tensorboard.util.tensor_util import make_tensor_proto

from hyperopt_id.analysis.load import load_run
from hyperopt_id.analysis.load_cache import cached
from hyperopt_id.analysis.load_checksums import FEW, masked_checksums
from hyperopt_id.analysis.load_event_runs import load_event_run, members
from hyperopt_id.analysis.load_events import event_files, read_events

TAGS = ("Loss/Training", "Loss/Test", "Unnormalised_Loss/Test", "Hyperparameter/Lr")


def oracle(directory: Path) -> dict[str, list[tuple[int, float, float]]]:
    found = EventAccumulator(str(directory), size_guidance={"scalars": 0}).Reload()
    return {
        tag: [(event.step, event.wall_time, event.value) for event in found.Scalars(tag)]
        for tag in found.Tags()["scalars"]
        if not tag.startswith("Last_")
    }


def assert_same_as_tensorboard(directory: Path) -> None:
    mine, theirs = read_events(event_files(directory)), oracle(directory)
    assert list(mine) == list(theirs)
    for tag, series in mine.items():
        np.testing.assert_array_equal(np.array(list(zip(*series))), np.array(theirs[tag]))


def log_steps(log: EventLog, steps: range, tags: tuple[str, ...] = TAGS, offset: float = 0.0) -> None:
    for step in steps:
        for place, tag in enumerate(tags):
            log.scalar(tag, step, offset + place + 1.0 / (step + 1), 1000.0 + step + 0.001 * place)


def test_every_point_of_long_runs_is_kept(tmp_path: Path):
    log = EventLog(tmp_path)
    log_steps(log, range(12_000), TAGS[:2])
    log.close()
    assert len(read_events(event_files(tmp_path))["Loss/Test"].steps) == 12_000
    assert_same_as_tensorboard(tmp_path)


def test_numbers_that_are_not_finite_and_repetitions_of_the_last_value(tmp_path: Path):
    log = EventLog(tmp_path)
    for step, number in enumerate((1.0, NAN, math.inf, -0.0, 1e-40)):
        log.scalar("Loss/Test", step, number)
        log.scalar("Last_Loss/Test", step, 7.0)
    log.close()
    assert_same_as_tensorboard(tmp_path)


def test_a_restart_forgets_the_steps_that_it_repeats(tmp_path: Path):
    first = EventLog(tmp_path, "events.out.tfevents.1.host")
    log_steps(first, range(20))
    first.close()
    second = EventLog(tmp_path, "events.out.tfevents.2.host")
    second.restart(12)
    log_steps(second, range(12, 30), offset=5.0)
    second.close()
    assert_same_as_tensorboard(tmp_path)
    assert len(read_events(event_files(tmp_path))["Loss/Test"].steps) == 30


def test_numbers_in_tensors(tmp_path: Path):
    log = EventLog(tmp_path)
    for step, tensor in enumerate((make_tensor_proto(0.5), make_tensor_proto(np.array([0.25], np.float64)))):
        log.value(step, 1.0, Summary.Value(tag="Loss/Test", tensor=tensor))
    log.value(2, 1.0, Summary.Value(tag="Text", tensor=make_tensor_proto("words")))
    log.close()
    found = read_events(event_files(tmp_path))
    assert {tag: series.values.tolist() for tag, series in found.items()} == {"Loss/Test": [0.5, 0.25]}


def test_quantiles_of_a_histogram(tmp_path: Path):
    """10 values in (1, 2], 80 in (2, 4], 10 in (4, 5]: limits beyond the largest value are cut."""
    histogram = HistogramProto(min=1.0, max=5.0, num=100, bucket_limit=[0.5, 2.0, 4.0, 9.0], bucket=[0, 10, 80, 10])
    log = EventLog(tmp_path)
    log.value(0, 1.0, Summary.Value(tag="Hyperparameter/Lr", histo=histogram))
    log.value(1, 1.0, Summary.Value(tag="Hyperparameter/Lr", histo=HistogramProto()))
    log.close()
    found = read_events(event_files(tmp_path))
    for suffix, expected in (("", 3.0), ("/p10", 2.0), ("/p90", 4.0)):
        first, empty = found[f"Hyperparameter/Lr{suffix}"].values
        assert first == pytest.approx(expected)
        assert math.isnan(empty)


@pytest.mark.parametrize("cut", [1, 4, 9, 20, 50])
def test_a_record_that_is_being_written_is_left_out(tmp_path: Path, cut: int):
    log = EventLog(tmp_path)
    log_steps(log, range(10), TAGS[:1])
    path = log.close()
    path.write_bytes(path.read_bytes()[:-cut])
    assert_same_as_tensorboard(tmp_path)


def test_a_damaged_record_is_named(tmp_path: Path):
    log = EventLog(tmp_path)
    log_steps(log, range(10), TAGS[:1])
    path = log.close()
    data = bytearray(path.read_bytes())
    data[-60] ^= 0xFF  # in the length of the last record but one, or its checksum
    for broken in (bytes(data), path.read_bytes()[:-40] + b"\xff" * 40):
        path.write_bytes(broken)
        with pytest.raises(ValueError, match=r"record \d+ of .+tfevents\S+ is damaged \(.+\); remove the file"):
            read_events([path])


def test_a_flipped_bit_is_found_wherever_it_is(tmp_path: Path):
    """In the length, the numbers, or one of the checksums of a record between others."""
    log = EventLog(tmp_path)
    log_steps(log, range(8), TAGS[:1])
    before = log.offset
    log_steps(log, range(8, 9), TAGS[:1])
    after = log.offset
    log_steps(log, range(9, 12), TAGS[:1])
    path = log.close()
    whole = path.read_bytes()
    for bit in range(8 * before, 8 * after):
        data = bytearray(whole)
        data[bit // 8] ^= 1 << bit % 8
        path.write_bytes(data)
        with pytest.raises(ValueError, match=r"record 10 of .+ is damaged"):  # the first one has the version
            read_events([path])


@pytest.mark.parametrize("most", [0, 7, 1000])
def test_checksums_of_many_parts_are_those_of_each(most: int):
    generator = np.random.default_rng(most)
    data = generator.bytes(5000)
    for count in (0, 1, FEW - 1, FEW, 300):
        starts = generator.integers(0, 4000, size=count)
        lengths = generator.integers(0, most + 1, size=count)
        expected = [masked_crc32c(data[start : start + length]) for start, length in zip(starts, lengths)]
        assert masked_checksums(data, starts, lengths).tolist() == expected


# runs of the published code


def write_published(directory: Path, updates: int = 3, **changed: object) -> Path:
    log = EventLog(directory)
    log_steps(log, range(10 * updates + 1))
    log.close()
    (directory / "config.json").write_text(json.dumps(published(updates=updates, **changed)))
    return directory


def test_a_run_of_the_published_code(tmp_path: Path):
    runs = load_event_run(write_published(tmp_path / "run"))
    assert runs is not None
    assert (runs.dataset, runs.algorithm, runs.terms, runs.steps_per_update) == (
        "uci_energy",
        "Ours_LR_Momentum",
        5,
        10,
    )
    assert runs.steps.tolist() == list(range(31))
    assert runs.final("loss/test").tolist() == [np.float32(1.0 + 1.0 / 31)]
    assert runs.metric == "unnormalized_loss/test"
    assert {name: value.item() for name, value in runs.starts.items()} == {
        "lr": 0.01,
        "weight_decay": 1e-4,
        "momentum": 0.5,
    }
    assert runs.cost["total"] == pytest.approx(30.0)
    assert not runs.diverged.any()


def test_a_baydin_run_updates_its_hyperparameters_at_every_step(tmp_path: Path):
    """Its config has T = 10 and three updates, of which the published code makes T = 1 and 30 updates."""
    about = published("Baydin", force_single_network_weight_step=True, validation_proportion=0)
    about["config_dicts"]["hyperparameter_wrapper"] = {"class": "BaydinHypergradientDescent"}
    directory = write_published(tmp_path / "run")
    (directory / "config.json").write_text(json.dumps(about))
    runs = load_event_run(directory)
    assert (runs.steps_per_update, runs.settings["inner.updates"], runs.length) == (1, 30, 30)
    assert runs.settings["hypergradient.engine"] == "one_step"


@pytest.mark.parametrize(
    ("dataset", "changed", "whole"),
    [
        ("UCI_Energy", {}, True),  # 78 rows, batches of 692
        ("UCI_Energy", {"batch_size": 78}, True),
        ("UCI_Energy", {"batch_size": 77}, False),
        ("FashionMNIST", {"batch_size": 50}, False),
        ("FashionMNIST", {"batch_size": 50, "full_batch_validation_evaluations": True}, True),
        ("PennTreebank", {"batch_size": 70}, False),
        ("PennTreebank", {"batch_size": 70, "full_batch_validation_evaluations": True}, True),
    ],
)
def test_a_validation_loss_is_of_a_batch_or_of_everything(tmp_path: Path, dataset: str, changed, whole: bool):
    log = EventLog(tmp_path)
    log.scalar("Loss/Validation", 30, 0.5)
    log.close()
    about = published(**changed)
    about["config_dicts"]["dataset"]["class"] = dataset
    (tmp_path / "config.json").write_text(json.dumps(about))
    runs = load_event_run(tmp_path)
    assert runs.validates == whole
    np.testing.assert_array_equal(runs.validation, [0.5 if whole else NAN])
    assert runs.final("loss/validation").tolist() == [0.5]


@pytest.mark.parametrize(
    ("changed", "algorithm", "terms"),
    [
        ({"algorithm": "LongDiffThroughOpt"}, "LongDiffThroughOpt_Medium", 5),
        (
            {"algorithm": "LongDiffThroughOpt", "reset_model_after_hyperparameter_update": True},
            "LongDiffThroughOpt_Standalone",
            5,
        ),
        ({"algorithm": "Random"}, "Random", 5),
    ],
)
def test_names_of_the_published_code(tmp_path: Path, changed, algorithm, terms):
    runs = load_event_run(write_published(tmp_path / "run", **changed))
    assert runs is not None
    assert (runs.algorithm, runs.terms) == (algorithm, terms)


def test_windows_and_missing_engines_of_the_published_code(tmp_path: Path):
    about = published("DiffThroughOpt")
    about["config_dicts"]["hyperparameter_wrapper"] = {"class": "ExactHypergradientOptimiser"}
    for name, window, expected in (("cut", 5, 5), ("whole", -1, 10)):
        directory = write_published(tmp_path / name)
        (directory / "config.json").write_text(json.dumps(about | {"reset_loop_before_hyperparameter_step": window}))
        assert load_event_run(directory).terms == expected
    del about["config_dicts"]["hyperparameter_wrapper"]
    (directory / "config.json").write_text(json.dumps(about | {"validation_proportion": 0}))
    runs = load_event_run(directory)
    assert runs.terms is None
    assert np.isnan(runs.validation).all()


def test_a_run_that_did_not_come_to_its_end_is_none(tmp_path: Path):
    directory = write_published(tmp_path / "run")
    (directory / "config.json").write_text(json.dumps(published(updates=4)))
    assert load_event_run(directory) is None
    (directory / "config.json").write_text(json.dumps(published(updates=4, total_step_limit=30)))
    assert load_event_run(directory) is not None


def test_a_run_that_ends_without_a_finite_loss_has_diverged(tmp_path: Path):
    log = EventLog(tmp_path)
    log_steps(log, range(30))
    for tag, number in (("Loss/Training", math.inf), ("Loss/Test", NAN), ("Loss/Validation", NAN)):
        log.scalar(tag, 30, number, 1031.0)
    log.close()
    (tmp_path / "config.json").write_text(json.dumps(published()))
    runs = load_event_run(tmp_path)
    assert runs.diverged.tolist() == [True]
    assert np.isnan(runs.final("loss/test")).all()


def test_a_continued_run_counts_on(tmp_path: Path):
    """The second file repeats the last step of the first as its step 0, an hour later."""
    write_published(tmp_path / "run", updates=3)
    log = EventLog(tmp_path / "run", "events.out.tfevents.2000.host")
    for step in range(21):
        log.scalar("Loss/Test", step, 50.0 + step, 5000.0 + step)
    log.close()
    (tmp_path / "run" / "config_checkpoint.json").write_text(json.dumps(published(updates=2)))
    runs = load_event_run(tmp_path / "run")
    assert runs.steps.tolist() == list(range(51))
    curve = runs.curve("loss/test")[0]
    np.testing.assert_array_equal(curve[30:], np.arange(50.0, 71.0))
    assert curve[29] == pytest.approx(1.0 + 1.0 / 30)
    assert runs.times[0, -1] == pytest.approx(50.0, abs=2.0)


def test_an_event_run_of_this_package_needs_no_reports(tmp_path: Path):
    log = EventLog(tmp_path)
    log_steps(log, range(10, 50, 10))
    log.close()
    config = {"task": {"name": "digits"}, "algorithm": "Ours_LR", "inner": {"steps_per_update": 10, "updates": 4}}
    (tmp_path / "config.json").write_text(json.dumps(config | {"start": {"lr": [0.5]}}))
    runs = load_event_run(tmp_path)
    assert (runs.dataset, runs.algorithm, runs.starts["lr"].tolist()) == ("digits", "Ours_LR", [0.5])
    assert list(runs.curves) == ["loss/train", "loss/test", "unnormalized_loss/test", "hyper/lr"]


def test_events_of_a_population_say_what_its_reports_say(tmp_path: Path):
    """Learning rates for each element, momentum for each tensor; events are float32, quantiles between their ranks."""
    tune = ["space.lr.tune=[element]", "space.weight_decay.tune=[global]", "space.momentum.tune=[tensor]"]
    engine = ["hypergradient={engine: neumann, terms: 3}", "population.runs=3", "seed=5"]
    run = train(tmp_path / "run", *tune, *engine)
    expected = load_run(run)
    runs = load_event_run(run)
    assert len(runs) == 3
    assert runs.seeds.tolist() == expected.seeds.tolist() == [5, 6, 7]
    assert runs.identities == expected.identities
    assert set(runs.curves) == set(expected.curves)
    np.testing.assert_array_equal(runs.steps, expected.steps)
    for name in runs.curves:
        between = 0.2 if name.startswith("hyper/lr") else 1e-6
        np.testing.assert_allclose(runs.curve(name), expected.curve(name), rtol=between, err_msg=name)
    (timing,) = runs.timings
    assert (timing.runs, timing.steps) == (3, 18)
    spans = [np.ptp(read_events(event_files(folder))["Loss/Training"].times) for folder in members(run)]
    assert runs.cost["total"] == pytest.approx(np.mean(spans))  # side by side: a third of the time is each one's
    np.testing.assert_allclose(runs.times[:, -1], np.array(spans) / 3.0)
    assert {k: v for k, v in runs.settings.items() if k != "source"} == expected.settings


def test_a_population_of_which_a_member_is_unfinished_is_none(tmp_path: Path):
    for member, last in ((0, 40), (1, 30)):
        log = EventLog(tmp_path / f"member_{member:02d}")
        log_steps(log, range(10, last + 1, 10))
        log.close()
    config = {"task": {"name": "digits"}, "algorithm": "Ours_LR", "inner": {"steps_per_update": 10, "updates": 4}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert load_event_run(tmp_path) is None


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"config_dicts": {}}'])
def test_events_beside_a_config_of_something_else(tmp_path: Path, text: str):
    EventLog(tmp_path).close()
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=r"holds TensorBoard events, but its config\.json does not name a data set"):
        load_event_run(tmp_path)


def test_a_key_that_a_config_lacks_is_named(tmp_path: Path):
    about = published()
    del about["hyperparameter_steps"]
    EventLog(tmp_path).close()
    (tmp_path / "config.json").write_text(json.dumps(about))
    with pytest.raises(ValueError, match=r"its config\.json has no 'hyperparameter_steps'"):
        load_event_run(tmp_path)


# the cache


def reading(calls: list[list[Path]]):
    def read(files: list[Path]) -> dict[str, np.ndarray]:
        calls.append(files)
        return {"loss/test": np.arange(len(files[0].read_bytes()), dtype=np.float32), "steps": np.array([1, 2])}

    return read


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "events").write_bytes(b"abc")
    return tmp_path / "events"


def test_what_was_read_is_not_read_again(tmp_path: Path, source: Path):
    calls: list[list[Path]] = []
    first, second = (cached(tmp_path / "cache", [source], reading(calls)) for _ in range(2))
    assert len(calls) == 1
    assert {name: array.tolist() for name, array in first.items()} == {n: a.tolist() for n, a in second.items()}
    assert [array.dtype for array in first.values()] == [array.dtype for array in second.values()]


def test_a_changed_file_is_read_again(tmp_path: Path, source: Path):
    calls: list[list[Path]] = []
    cached(tmp_path / "cache", [source], reading(calls))
    source.write_bytes(b"abcd")
    assert len(cached(tmp_path / "cache", [source], reading(calls))["loss/test"]) == 4
    assert len(calls) == 2


@pytest.mark.parametrize("seed", range(8))
def test_a_damaged_cache_is_made_again(tmp_path: Path, source: Path, seed: int):
    calls: list[list[Path]] = []
    expected = cached(tmp_path / "cache", [source], reading(calls))
    (entry,) = (tmp_path / "cache").iterdir()
    data, generator = bytearray(entry.read_bytes()), np.random.default_rng(seed)
    if seed < 2:
        data = data[: len(data) // (seed + 2)]
    else:
        for place in generator.integers(len(data), size=10 * seed):
            data[place] ^= int(generator.integers(1, 256))
    entry.write_bytes(data)
    found = cached(tmp_path / "cache", [source], reading(calls))
    assert {name: array.tolist() for name, array in found.items()} == {n: a.tolist() for n, a in expected.items()}


def test_a_cache_that_cannot_be_written_costs_nothing_but_time(tmp_path: Path, source: Path):
    (tmp_path / "cache").write_text("a file where the folder should be")
    calls: list[list[Path]] = []
    for _ in range(2):
        assert len(cached(tmp_path / "cache", [source], reading(calls))["steps"]) == 2
    assert len(calls) == 2


def test_a_run_from_the_cache_is_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    directory = write_published(tmp_path / "run")
    first = load_event_run(directory, tmp_path / "cache")
    monkeypatch.setattr("hyperopt_id.analysis.load_event_curves.read_events", None)
    second = load_event_run(directory, tmp_path / "cache")
    assert list(first.curves) == list(second.curves)
    for name in first.curves:
        np.testing.assert_array_equal(first.curve(name), second.curve(name))
    np.testing.assert_array_equal(first.times, second.times)
