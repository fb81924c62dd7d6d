"""TensorBoard events against TensorBoard's own reader."""

import math
from pathlib import Path

import numpy as np
import pytest
from logs import NAN, TAGS, EventLog, log_steps
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.compat.proto.summary_pb2 import HistogramProto, Summary  # pyright: ignore
from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c
from tensorboard.util.tensor_util import make_tensor_proto

from hyperopt_id.analysis.load_checksums import FEW, masked_checksums
from hyperopt_id.analysis.load_events import event_files, read_events


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
