"""scripts/parallel_exec.py on a Ray cluster that a SLURM job makes of its nodes."""

import subprocess
import sys
from pathlib import Path

import pytest
from short_runs import CONFIGS, TINY, assert_same_run
from slurm_server import answer, wait_for

from hyperopt_id import launch
from hyperopt_id.config import load

pytest.importorskip("ray", reason="needs the extra baselines")
ROOT = CONFIGS.parent


def of_job(job: str) -> list[str]:
    """The processes with the folder of this job's Ray in their command line."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found += [path.parent.name] * (f"/tmp/ray_{job}/".encode() in path.read_bytes())
        except OSError:  # it has ended
            continue
    return found


def test_chunks_are_trained_on_the_nodes_of_a_job_which_leaves_nothing_of_ray(slurm, tmp_path):
    output = tmp_path / "job.out"
    environment = {**slurm, "PATH": f"{Path(sys.executable).parent}:{slurm['PATH']}", "HYPEROPT_ID_SITE": ""}
    command = ["sbatch", "--parsable", "--nodes=2", "--time=10", f"--output={output}", "scripts/slurm/parallel_exec.sh"]
    arguments = ["-c", "configs/digits.yaml", "--algorithms", "Random", "Ours_LR", "-s", *TINY]
    arguments += ["--repetitions", "2", "--workers", "2", "-l", str(tmp_path), "-g", "runs"]
    job = subprocess.run([*command, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert job.returncode == 0, job.stderr
    number = job.stdout.strip()

    def state() -> str:
        return answer(slurm, "squeue", "--noheader", "--states=all", f"--jobs={number}", "--format=%T")

    assert wait_for(lambda: state() in {"COMPLETED", "FAILED", "TIMEOUT"})
    assert state() == "COMPLETED", output.read_text()
    assert "Ray has 2 nodes, 2 CPUs and 0 GPUs" in output.read_text()
    runs = sorted((tmp_path / "runs").iterdir())
    assert [run.name for run in runs] == ["Ours_LR_000-000", "Ours_LR_001-001", "Random_000-000", "Random_001-001"]
    launch.run(load([runs[1] / "config.yaml"]), tmp_path / "alone")
    assert_same_run(tmp_path / "alone", runs[1])
    assert not Path(f"/tmp/ray_{number}").exists()
    assert wait_for(lambda: not of_job(number), seconds=10.0)
