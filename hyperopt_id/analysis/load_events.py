"""TensorBoard event files, whole: every point of every tag.

A file is a sequence of records

    length (8 bytes) | checksum of the length (4) | an `Event` of that length | checksum of the event (4)

and both checksums are compared. Several files of a directory follow each other in the order of their names. A restart
that says which steps it repeats (`SessionLog.START`, a writer's `purge_step`) removes them from what came before, as
TensorBoard does.
"""

# pyright: reportAttributeAccessIssue=none
# protobuf defines the classes of the *_pb2 modules at run time.

import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from google.protobuf.message import DecodeError
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import HistogramProto, Summary
from tensorboard.util.tensor_util import make_ndarray

from hyperopt_id import files
from hyperopt_id.analysis.load_checksums import masked_checksums

SHARES = {"/p10": 0.1, "": 0.5, "/p90": 0.9}  # what is kept of a histogram, by the suffix of its tag
SKIPPED = "Last_"  # repetitions of other tags
LARGEST = 8 * 2**30  # bytes of a file
_LENGTH = struct.Struct("<Q")
Points = dict[str, tuple[list[int], list[float], list[float]]]  # {tag: (steps, wall times, values)}


class Series(NamedTuple):
    """The points of one tag in the order in which they were written: int64, float64 and float64 [N]."""

    steps: np.ndarray
    times: np.ndarray
    values: np.ndarray


def event_files(directory: Path) -> list[Path]:
    return sorted(path for path in directory.glob("events.out.tfevents.*") if path.is_file())


def read_events(files: Sequence[Path]) -> dict[str, Series]:
    """Scalars (also in tensors), and the median, p10 and p90 of histograms, by tag. An unfinished last record is left
    out; a ValueError names one that is damaged."""
    points: Points = {}
    for file in files:
        for event in _events(file):
            if not event.HasField("summary"):
                if event.session_log.status == SessionLog.START:
                    points = {tag: _before(event.step, *series) for tag, series in points.items()}
                continue
            step, time = event.step, event.wall_time
            for value in event.summary.value:
                tag = value.tag
                if tag.startswith(SKIPPED):
                    continue
                for name, number in ((tag, value.simple_value),) if value.HasField("simple_value") else _numbers(value):
                    series = points.get(name)
                    if series is None:
                        series = points[name] = ([], [], [])
                    series[0].append(step)
                    series[1].append(time)
                    series[2].append(number)
    return {
        tag: Series(np.array(steps, dtype=np.int64), np.array(times), np.array(values))
        for tag, (steps, times, values) in points.items()
    }


def _events(file: Path) -> Iterator[Event]:
    data = files.read(file, LARGEST)
    starts, position = [], 0
    while position + 12 <= len(data):
        starts.append(position)
        position += 16 + _LENGTH.unpack_from(data, position)[0]
    whole = len(starts) - (position > len(data))  # the last record is being written, or its length is damaged
    ends = [*starts[1:], position][:whole]
    wrong = _damaged(data, np.array(starts, np.int64), np.array(ends, np.int64))
    if wrong.any():
        number = int(wrong.argmax()) + 1
        raise ValueError(f"record {number} of {file} is damaged (wrong checksum); remove the file to go on")
    for number, (start, end) in enumerate(zip(starts, ends), start=1):
        try:
            yield Event.FromString(data[start + 12 : end - 4])
        except DecodeError as error:
            raise ValueError(f"record {number} of {file} is no event; remove the file to go on") from error


def _damaged(data: bytes, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Which of the records [N] have a wrong checksum; `ends` are those of the whole ones."""
    octets, whole = np.frombuffer(data, np.uint8), len(ends)

    def written(places: np.ndarray) -> np.ndarray:
        return octets[places[:, None] + np.arange(4)].view("<u4")[:, 0]

    wrong = masked_checksums(data, starts, np.full(len(starts), 8)) != written(starts + 8)
    wrong[:whole] |= masked_checksums(data, starts[:whole] + 12, ends - 16 - starts[:whole]) != written(ends - 4)
    return wrong


def _numbers(value: Summary.Value) -> Iterator[tuple[str, float]]:
    """What a summary that is not a plain scalar holds."""
    kind = value.WhichOneof("value")
    if kind == "tensor" and value.metadata.plugin_data.plugin_name != "hparams":
        try:
            array = make_ndarray(value.tensor)
        except (TypeError, ValueError):  # of a type or shape that is none: no number
            return
        if array.size == 1 and np.issubdtype(array.dtype, np.number):
            yield value.tag, float(array.item())
    elif kind == "histo":
        yield from zip((f"{value.tag}{suffix}" for suffix in SHARES), _quantiles(value.histo))


def _quantiles(histogram: HistogramProto) -> list[float]:
    """At `SHARES`, on a straight line within a bucket, whose ends are no wider than the smallest and largest value."""
    limits, counts = np.array(histogram.bucket_limit), np.array(histogram.bucket)
    if not counts.sum() > 0.0 or len(limits) != len(counts) or (counts < 0.0).any():
        return [float("nan")] * len(SHARES)
    reached = np.concatenate([[0.0], counts.cumsum() / counts.sum()])
    ends = np.concatenate([[histogram.min], np.minimum(limits, histogram.max)])
    shares = np.array(list(SHARES.values()))
    bucket = np.searchsorted(reached, shares)  # from ends[bucket - 1] to ends[bucket]
    inside = (shares - reached[bucket - 1]) / (reached[bucket] - reached[bucket - 1])
    low = np.maximum(ends[bucket - 1], histogram.min)
    return (low + inside * (ends[bucket] - low)).tolist()


def _before(
    step: int, steps: list[int], times: list[float], values: list[float]
) -> tuple[list[int], list[float], list[float]]:
    kept = [index for index, known in enumerate(steps) if known < step]
    return [steps[i] for i in kept], [times[i] for i in kept], [values[i] for i in kept]
