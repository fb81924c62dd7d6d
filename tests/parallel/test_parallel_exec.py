"""Runs over workers: nothing is lost or done twice, whatever happens to the workers. One local Ray serves all tests."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import parallel_exec
import pytest
import ray
import ray_tasks
from ray import exceptions
from ray_tasks import reported_step
from short_runs import CONFIGS, assert_same_run, summary

from baselines.lock import held
from hyperopt_id import launch
from hyperopt_id.telemetry import is_finished

TINY = [
    "task.model.sizes=[64,4,10]",
    "task.batch_size=5",
    "inner={steps_per_update: 3, updates: 4, compile: off}",
    "report.checkpoint_every=1",
    "dtype=float64",
]
LONG = ["inner.updates=300", "report.every=60"]  # long enough to be stopped in the middle
PATIENCE = 120.0  # seconds until something that is waited for counts as missing


@pytest.fixture(scope="module")
def workers() -> Iterator[None]:
    from baselines.cluster import Resources, cluster

    with cluster(Resources(2)):
        yield


def arguments(directory: Path, *more: str, algorithms: tuple[str, ...] = ("Ours_LR",), starts: int = 4) -> list[str]:
    given = ["-c", str(CONFIGS / "digits.yaml"), "--algorithms", *algorithms, "--repetitions", str(starts)]
    return [*given, "--workers", "2", "-l", str(directory), "-g", "group", "-s", *TINY, *more]


def uninterrupted(given: list[str], directory: Path) -> list[tuple[Path, Path]]:
    """(directory of the chunk, directory of its run without any worker), for every chunk."""
    chunks = parallel_exec.plan(parallel_exec.parser().parse_args(given))
    for chunk in chunks:
        launch.complete(chunk.config, directory / chunk.directory.name)
    return [(chunk.directory, directory / chunk.directory.name) for chunk in chunks]


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


@pytest.mark.usefixtures("workers")
def test_chunks_end_with_the_numbers_of_the_whole_population(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    algorithms = ("Random", "Ours_LR")
    assert parallel_exec.main(arguments(tmp_path, "--chunk", "3", algorithms=algorithms, starts=7)) == 0
    assert "6 of 6 chunks are finished" in capsys.readouterr().out
    whole = arguments(tmp_path / "whole", "--chunk", "7", algorithms=algorithms, starts=7)
    for _, run in uninterrupted(whole, tmp_path / "whole"):
        label = run.name.removesuffix("_000-006")
        parts = [summary(tmp_path / "group" / f"{label}_{cut}") for cut in ("000-002", "003-005", "006-006")]
        for name, values in summary(run)["final"].items():
            joined = np.concatenate([part["final"][name] for part in parts])
            np.testing.assert_allclose(joined, values, rtol=1e-9, err_msg=f"{label} {name}")


@pytest.mark.usefixtures("workers")
def test_a_killed_worker_loses_nothing(tmp_path: Path):
    """Its chunk is given to another one, which continues from the checkpoint to the same numbers."""
    given = arguments(tmp_path, *LONG)
    status: list[int] = []
    training = threading.Thread(target=lambda: status.append(parallel_exec.main(given)))
    training.start()
    chunk = tmp_path / "group" / "Ours_LR_002-003"
    wait_for((chunk / "checkpoints" / "latest").is_file)
    os.kill(json.loads((chunk / "environment.json").read_text())["pid"], signal.SIGKILL)
    training.join(PATIENCE)
    assert status == [0]
    assert len(json.loads((chunk / "environment.json").read_text())["previous"]) == 1
    for there, alone in uninterrupted(given, tmp_path / "alone"):
        assert_same_run(there, alone)


@pytest.mark.usefixtures("workers")
def test_ctrl_c_leaves_what_the_same_command_completes(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """On a terminal all processes get it. The number of workers may change, and the chunks stay as they are."""
    given = arguments(tmp_path, *LONG, starts=6)
    script = [sys.executable, parallel_exec.__file__, *given, "--chunk", "2"]
    process = subprocess.Popen(script, cwd=tmp_path, stderr=subprocess.PIPE, text=True, start_new_session=True)
    last = tmp_path / "group" / "Ours_LR_004-005"
    wait_for((last / "checkpoints" / "latest").is_file)  # the third chunk: one of the first two is finished
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=PATIENCE)
    assert (process.returncode, said.splitlines()[-1]) == (130, "interrupted; the same command continues")
    assert not is_finished(last)
    given += ["--workers", "1"]
    finished = [path for path in (tmp_path / "group").iterdir() if is_finished(path)]
    stamps = [(path / "summary.json").stat().st_mtime_ns for path in finished]
    assert parallel_exec.main(given) == 0
    assert f"{len(finished)} of 3 chunks are already finished" in capsys.readouterr().err
    assert stamps == [(path / "summary.json").stat().st_mtime_ns for path in finished]
    for there, alone in uninterrupted(given, tmp_path / "alone"):
        assert_same_run(there, alone)
    assert parallel_exec.main(given) == 0  # and now there is nothing left to do


def test_what_another_process_trains_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Other algorithms may be trained into the group at the same time."""
    group = tmp_path / "group"
    with held(group / "Ours_LR.lock", ""):
        assert parallel_exec.main(arguments(tmp_path, algorithms=("Random", "Ours_LR"))) == 2
        said = capsys.readouterr().err
        assert said.startswith(f"error: process {os.getpid()} on ")
        assert said.endswith(f"at work in {group}; wait for it, or choose another group with -g GROUP\n")
        assert [path.name for path in group.iterdir()] == ["Ours_LR.lock"]
        with held(group / "Random.lock", ""):
            pass


@pytest.mark.usefixtures("workers")
@pytest.mark.parametrize("sign", ["an error", "no answer"])
def test_a_ray_that_is_lost_is_one_line_after_what_had_failed(
    sign: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "group").mkdir()
    (tmp_path / "group" / "Ours_LR_000-001").write_text("a file where a run directory should be")
    failed: list[str | None] = []
    failure, wait = ray_tasks._failure, ray.wait

    def noted(task: ray.ObjectRef) -> str | None:
        failed.append(failure(task))
        return failed[-1]

    def waited(*arguments: Any, **options: Any) -> Any:
        if failed and sign == "an error":
            raise exceptions.RaySystemError("the raylet is gone")
        return wait(*arguments, **options)

    monkeypatch.setattr(ray_tasks, "_failure", noted)
    monkeypatch.setattr(ray, "wait", waited)
    monkeypatch.setattr(ray_tasks, "_is_there", lambda: not failed)
    monkeypatch.setattr(ray_tasks, "SECONDS_WITHOUT_RAY", 0.0)
    assert parallel_exec.main([*arguments(tmp_path, *LONG), "--workers", "1", "--chunk", "2"]) == 2
    *_, first, lost = capsys.readouterr().err.splitlines()
    assert first.startswith("failed: Ours_LR_000-001: the log directory")
    assert lost.startswith("error: Ray is lost (")
    assert lost.endswith("); the same command continues")


ONE_RETRY = "import sys, ray_tasks, parallel_exec; ray_tasks.RETRIES = 1; sys.exit(parallel_exec.main(sys.argv[1:]))"


def test_a_chunk_that_does_not_fit_into_memory_fails(tmp_path: Path):
    """Ray would try for ever."""
    scripts = str(Path(parallel_exec.__file__).parent)
    nothing_fits = {"RAY_memory_usage_threshold": "1e-6", "RAY_task_oom_retry_delay_base_ms": "10"}
    environment = {**os.environ, **nothing_fits, "PYTHONPATH": scripts}
    command = [sys.executable, "-c", ONE_RETRY, *arguments(tmp_path, *LONG, starts=1)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 1, done.stderr
    assert "failed: Ours_LR_000-000: memory ran out 2 times; take fewer --workers" in done.stderr


@pytest.mark.usefixtures("workers")
def test_a_failed_chunk_is_reported_and_the_others_finish(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "group").mkdir()
    (tmp_path / "group" / "Ours_LR_000-001").write_text("a file where a run directory should be")
    assert parallel_exec.main(arguments(tmp_path, algorithms=("Random", "Ours_LR"))) == 1
    said = capsys.readouterr()
    failures = [line for line in said.err.splitlines() if line.startswith("failed: ")]
    assert len(failures) == 1
    assert failures[0].startswith("failed: Ours_LR_000-001: the log directory")
    assert "3 of 4 chunks are finished" in said.out
    finished = {path.name for path in (tmp_path / "group").iterdir() if is_finished(path)}
    assert finished == {"Random_000-001", "Random_002-003", "Ours_LR_002-003"}


@pytest.mark.usefixtures("workers")
def test_earlier_starts_are_replicated_exactly(tmp_path: Path):
    assert parallel_exec.main([*arguments(tmp_path / "a", starts=3), "--seed", "5"]) == 0
    again = ["-c", str(CONFIGS / "digits.yaml"), "--algorithms", "Random_Validation", "--workers", "1", "-s", *TINY]
    again += ["-l", str(tmp_path / "b"), "-g", "group", "--overrides", "from_directory", str(tmp_path / "a")]
    assert parallel_exec.main(again) == 0

    def rates(run: str) -> np.ndarray:
        """Of the first step, [R]."""
        return np.load(tmp_path / run / "trace" / "lr.npy")[0]

    earlier = [rates(f"a/group/Ours_LR_{cut}") for cut in ("005-006", "007-007")]
    np.testing.assert_array_equal(rates("b/group/Random_Validation_005-007"), np.concatenate(earlier))


def test_progress_is_read_from_the_newest_report(tmp_path: Path):
    assert reported_step(tmp_path / "not begun") == 0
    (tmp_path / "metrics.jsonl").write_text("")
    assert reported_step(tmp_path) == 0
    lines = [json.dumps({"step": step, "update": step // 10, "loss/test": {"step": 7}}) for step in (10, 120)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + '\n{"ste')
    assert reported_step(tmp_path) == 120


# Mistakes


@pytest.mark.parametrize(
    "mistake, said",
    [
        (["--workers", "0"], "--workers: given 0; allowed: 1 or more"),
        (["--repetitions", "0"], "--repetitions: given 0"),
        (["--chunk", "-1"], "--chunk: given -1"),
        (["--algorithms", "Ours_LR_Momentun"], "there is no 'Ours_LR_Momentun'; did you mean Ours_LR_Momentum?"),
        (["--overrides", "sensitvity"], "did you mean sensitivity? allowed: natural_sgd, "),
        (["--overrides", "from_directory", "/nowhere"], "/nowhere holds no runs"),
        (["-s", "inner.updats=3"], "inner.updates"),
        (["--device", "cuda"], "add --gpus-per-task 1"),
        (["--gpus-per-task", "1"], "Ray sees 0 in all"),
        (["--address", "127.0.0.1:9"], "no Ray cluster answers at 127.0.0.1:9"),
        (["--data-root", "{tmp_path}", "-c", str(CONFIGS / "uci_boston.yaml")], "UCI_Boston"),
    ],
)
@pytest.mark.usefixtures("workers")
def test_mistakes_are_one_line(tmp_path: Path, mistake: list[str], said: str, capsys: pytest.CaptureFixture[str]):
    given = arguments(tmp_path / "runs")[: -len(TINY) - 1]
    assert parallel_exec.main([*given, *(word.format(tmp_path=tmp_path) for word in mistake)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert said in error
    assert error.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def test_no_config_is_a_mistake(capsys: pytest.CaptureFixture[str]):
    assert parallel_exec.main(["--algorithms", "Random"]) == 2
    assert "no config: name at least one file" in capsys.readouterr().err
