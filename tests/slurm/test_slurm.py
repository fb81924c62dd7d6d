"""Job arrays on a real SLURM: what tasks leave equals what train.py does alone, however often they are stopped."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from short_runs import CONFIGS, TINY, assert_same_run, config, into, summary
from slurm_server import answer, wait_for

from hyperopt_id import cli

SUBMIT = CONFIGS.parent / "scripts" / "slurm" / "submit.sh"
BIN = str(Path(sys.executable).parent)
ENDED = {"COMPLETED", "FAILED", "TIMEOUT", "CANCELLED", "NODE_FAIL", "OUT_OF_MEMORY"}
LONG = [*TINY, "inner.updates=150"]  # a second: time to stop it in the middle


def submit(
    slurm: dict[str, str], directory: Path, algorithms: list[str], overrides: list[str], starts: int
) -> list[str]:
    """Submit starts on digits with a site file that says where Python is; returns the numbers of the arrays."""
    site = directory / "site.sh"
    site.write_text(f'PATH="{BIN}:$PATH"\nexport SBATCH_PARTITION=test\n')
    options = [
        "--algorithms",
        *algorithms,
        "--starts",
        str(starts),
        "--time",
        "10",
        "-l",
        str(directory),
        "-s",
        *overrides,
    ]
    environment = {**slurm, "HYPEROPT_ID_SITE": str(site)}
    done = subprocess.run([SUBMIT, "digits", *options], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [line.split()[2].rstrip(":") for line in done.stdout.splitlines()]


def states(slurm: dict[str, str], job: str) -> set[str]:
    return set(answer(slurm, "squeue", "--noheader", "--array", "--states=all", f"--jobs={job}", "--format=%T").split())


def until_completed(slurm: dict[str, str], jobs: list[str], directory: Path) -> None:
    assert wait_for(lambda: all(states(slurm, job) <= ENDED for job in jobs))
    said = "\n".join(path.read_text() for path in (directory / "slurm").glob("*.out"))
    assert all(states(slurm, job) == {"COMPLETED"} for job in jobs), said


def alone(directory: Path, algorithm: str, start: int, overrides: list[str]) -> Path:
    """The same run without SLURM."""
    arguments = [*config("digits", algorithm), *into(directory), "--seed", str(start), "--sample", "-s", *overrides]
    assert cli.train(arguments) == 0
    return directory


def halt_after_a_checkpoint(slurm: dict[str, str], job: str, runs: list[Path]) -> None:
    """Halt each of the runs as soon as it has a checkpoint, and before it is finished."""
    going = list(runs)

    def all_halted() -> bool:
        for run in [run for run in going if (run / "checkpoints" / "latest").exists()]:
            os.kill(json.loads((run / "environment.json").read_text())["pid"], signal.SIGSTOP)
            going.remove(run)
        return not going

    assert wait_for(all_halted, lambda: states(slurm, job) <= ENDED)
    assert not any((run / "summary.json").exists() for run in runs)


def test_an_array_trains_the_same_starts_with_every_algorithm(slurm, tmp_path):
    algorithms = ["Random", "Ours_LR"]
    jobs = submit(slurm, tmp_path, algorithms, TINY, starts=2)
    until_completed(slurm, jobs, tmp_path)
    runs = {(a, i): tmp_path / "digits" / f"{a}_{i:03d}" for a in algorithms for i in range(2)}
    for (algorithm, start), run in runs.items():
        assert_same_run(alone(tmp_path / "alone" / run.name, algorithm, start, TINY), run)
    momentum = {task: summary(run)["hyper"]["momentum"] for task, run in runs.items()}  # tuned by neither
    assert momentum["Random", 0] == momentum["Ours_LR", 0] != momentum["Random", 1] == momentum["Ours_LR", 1]


def test_a_requeued_task_and_one_whose_time_is_up_go_on_to_the_same_numbers(slurm, tmp_path):
    [job] = submit(slurm, tmp_path, ["Ours_HDLR_Momentum"], LONG, starts=2)
    requeued, struck = f"{job}_0", f"{job}_1"  # in the last task, SLURM_JOB_ID means the whole array
    runs = [tmp_path / "digits" / f"Ours_HDLR_Momentum_00{start}" for start in range(2)]
    halt_after_a_checkpoint(slurm, job, runs)
    answer(slurm, "scontrol", "requeue", requeued)
    answer(slurm, "scontrol", "update", f"JobId={struck}", "TimeLimit=1")  # the signal comes two minutes before
    assert wait_for(lambda: states(slurm, struck) != {"RUNNING"})  # SLURM looks at limits every 30 seconds
    answer(slurm, "scontrol", "update", f"JobId={struck}", "TimeLimit=10")
    until_completed(slurm, [job], tmp_path)
    assert "time is up" in (tmp_path / "slurm" / "digits_Ours_HDLR_Momentum_1.out").read_text()
    for start, run in enumerate(runs):
        assert len(json.loads((run / "environment.json").read_text())["previous"]) == 1
        assert_same_run(alone(tmp_path / f"alone_{start}", "Ours_HDLR_Momentum", start, LONG), run)
