"""TensorBoard event files, and nothing else imports TensorBoard's writer.

One run writes into its directory; up to ``MEMBERS`` runs of a population each into a sub-run ``member_00``
...; a larger population writes its quantiles into sub-runs ``members_min`` ... ``members_max``, so that one
chart shows them as lines. A report is one event per sub-run that holds all values: eight scalars take 0.06
ms, a quarter of what the ``SummaryWriter`` of torch needs, and no thread is started.
"""

# pyright: reportAttributeAccessIssue=none
# protobuf defines the classes of the *_pb2 modules at run time.

import os
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import numpy as np
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import HistogramProto, Summary
from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2
from tensorboard.summary.writer.record_writer import RecordWriter

from hyperopt_id.telemetry import event_files
from hyperopt_id.telemetry.measure import SHARES, Elements, Measured, Series, quantiles

MEMBERS = 32
RESULTS = ("Loss/", "Accuracy/", "Unnormalised_Loss/", "Perplexity/")  # the metrics of the HPARAMS tab
_GROUPS = {"unnormalized_loss": "Unnormalised_Loss", "hyper": "Hyperparameter"}


def tag(name: str) -> str:
    """``loss/train`` -> ``Loss/Training``, ``hyper/weight_decay`` -> ``Hyperparameter/Weight_Decay``."""
    group, *rest = name.split("/")
    leaves = ("Training" if leaf == "train" else leaf.replace("_", " ").title().replace(" ", "_") for leaf in rest)
    return "/".join([_GROUPS.get(group, group.replace("_", " ").title().replace(" ", "_")), *leaves])


class Board:
    """The event files of one run directory.

    ``purge_step`` makes TensorBoard forget what an earlier, interrupted process wrote from that step on.
    ``initial`` holds numbers [R] that tell the members apart in the HPARAMS tab, beside the common
    ``config``.
    """

    def __init__(
        self,
        directory: Path,
        config: Mapping[str, Any],
        runs: int,
        purge_step: int | None,
        initial: Mapping[str, Any],
    ) -> None:
        self._summarized = runs > MEMBERS
        if runs == 1:
            names = ["."]
        elif self._summarized:
            names = [f"members_{share}" for share in SHARES]
        else:
            names = [f"member_{member:02d}" for member in range(runs)]
        self._files: list[_EventFile] = []
        self._config, self._initial = dict(_flat(config)), list(initial)
        self._described = False
        try:
            for position, name in enumerate(names):
                self._files.append(_EventFile(directory / name, purge_step))
                own = {
                    name: quantiles(np.asarray(values))[position] if self._summarized else values[position]
                    for name, values in initial.items()
                }
                self._files[-1].write(0, [_session_start({**self._config, **own})])
        except OSError:
            self.drop()
            raise

    def write(self, step: int, measured: Mapping[str, Measured]) -> None:
        series = [(label, value) for name, value in measured.items() for label, value in _leaves(tag(name), value)]
        if not self._described:  # the first report says which results there are
            results = [label for label, _ in series if label.startswith(RESULTS)]
            self._files[0].write(0, [_experiment(self._config, self._initial, results)])
            self._described = True
        if self._summarized:
            over = [(label, quantiles(_center(value))) for label, value in series]
            for q, file in enumerate(self._files):
                file.write(step, [_scalar(label, values_Q[q]) for label, values_Q in over])
        else:
            for member, file in enumerate(self._files):
                values = (_member(label, value, member) for label, value in series)
                file.write(step, [value for value in values if value is not None])

    def drop(self) -> None:
        """Close the files as they are."""
        for file in self._files:
            file.drop()

    def close(self, finished: bool) -> None:
        status = "STATUS_SUCCESS" if finished else "STATUS_FAILURE"
        for file in self._files:
            file.write(0, [_session_end(status)])
            file.close()


class _EventFile:
    def __init__(self, directory: Path, purge_step: int | None) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        if purge_step is not None:
            event_files.forget_end(directory, metadata.SESSION_END_INFO_TAG)
        self._least = event_files.next_time(directory)
        name = f"{event_files.PREFIX}{self._least:017.6f}.{socket.gethostname()}.{os.getpid()}"
        self._stream: IO[bytes] = open(directory / name, "xb")  # noqa: SIM115 - lives as long as the run
        self._records = RecordWriter(self._stream)
        self._event(Event(wall_time=self._now(), file_version="brain.Event:2"))
        if purge_step is not None:
            start = SessionLog(status=SessionLog.START)
            self._event(Event(wall_time=self._now(), step=purge_step, session_log=start))

    def _now(self) -> float:
        """The time, which never runs back, although a clock may be set back."""
        self._least = max(self._least, time.time())
        return self._least

    def write(self, step: int, values: list[Summary.Value]) -> None:
        self._event(Event(wall_time=self._now(), step=step, summary=Summary(value=values)))
        self._records.flush()

    def _event(self, event: Event) -> None:
        self._records.write(event.SerializeToString())

    def drop(self) -> None:
        with suppress(OSError):
            self._stream.close()

    def close(self) -> None:
        self._records.close()


def _leaves(label: str, value: Measured) -> Iterator[tuple[str, Series | Elements]]:
    if isinstance(value, dict):
        yield from ((f"{label}/{parameter}", leaf) for parameter, leaf in value.items())
    else:
        yield label, value


def _center(value: Series | Elements) -> Series:
    return value.quantiles[:, list(SHARES).index("median")] if isinstance(value, Elements) else value


def _member(label: str, value: Series | Elements, member: int) -> Summary.Value | None:
    if isinstance(value, Elements):
        return _histogram(label, value, member)
    return _scalar(label, value if value.ndim == 0 else value[member])


def _scalar(label: str, value: Any) -> Summary.Value:
    return Summary.Value(tag=label, simple_value=float(value))


def _histogram(label: str, value: Elements, member: int) -> Summary.Value | None:
    """Buckets of about equal mass between order statistics: they suit values of any spread."""
    kept = np.isfinite(value.edges[member])
    if not kept.any():
        return None
    edges, ranks = value.edges[member][kept], value.ranks[kept]
    limits, bucket_of = np.unique(edges, return_inverse=True)
    counts = np.bincount(bucket_of, weights=np.diff(ranks, prepend=ranks[0] - 1))
    histogram = HistogramProto(
        min=edges[0],
        max=edges[-1],
        num=float(counts.sum()),
        sum=value.sums[member],
        sum_squares=value.squares[member],
        bucket_limit=limits.tolist(),
        bucket=counts.tolist(),
    )
    return Summary.Value(tag=label, histo=histogram)


def _flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, bool | float | str]]:
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        elif value is not None:
            yield prefix + name, value if isinstance(value, (bool, int, float, str)) else str(value)


def _experiment(config: Mapping[str, Any], initial: list[str], results: list[str]) -> Summary.Value:
    """Columns of the HPARAMS tab, the first of which are shown unasked: what tells runs apart, and their results."""
    first = {"algorithm": str, **dict.fromkeys(initial, float)}
    kinds = {**first, **{name: type(value) for name, value in config.items() if name not in first}}
    types = {str: api_pb2.DATA_TYPE_STRING, bool: api_pb2.DATA_TYPE_BOOL}
    described = api_pb2.Experiment(
        hparam_infos=[
            api_pb2.HParamInfo(name=name, type=types.get(kind, api_pb2.DATA_TYPE_FLOAT64), differs=name in first)
            for name, kind in kinds.items()
        ],
        metric_infos=[api_pb2.MetricInfo(name=api_pb2.MetricName(tag=result)) for result in results],
    )
    return _plugin_value(metadata.EXPERIMENT_TAG, plugin_data_pb2.HParamsPluginData(experiment=described))


def _session_start(hyperparameters: Mapping[str, Any]) -> Summary.Value:
    info = plugin_data_pb2.SessionStartInfo(start_time_secs=time.time())
    for name, value in hyperparameters.items():
        if isinstance(value, bool):
            info.hparams[name].bool_value = value
        elif isinstance(value, str):
            info.hparams[name].string_value = value
        else:
            info.hparams[name].number_value = float(value)
    return _plugin_value(metadata.SESSION_START_INFO_TAG, plugin_data_pb2.HParamsPluginData(session_start_info=info))


def _session_end(status: str) -> Summary.Value:
    info = plugin_data_pb2.SessionEndInfo(status=status, end_time_secs=time.time())
    return _plugin_value(metadata.SESSION_END_INFO_TAG, plugin_data_pb2.HParamsPluginData(session_end_info=info))


def _plugin_value(label: str, data: plugin_data_pb2.HParamsPluginData) -> Summary.Value:
    return Summary.Value(tag=label, metadata=metadata.create_summary_metadata(data), tensor=metadata.NULL_TENSOR)
