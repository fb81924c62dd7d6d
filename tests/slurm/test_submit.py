"""The scripts for SLURM where there is none: what would be submitted, mistakes, and a task by itself."""

import os
import shlex
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from short_runs import CONFIGS, TINY, assert_same_run, config, interrupted, into
from slurm_server import wait_for

from hyperopt_id import cli

ROOT = CONFIGS.parent
SCRIPTS = ROOT / "scripts" / "slurm"
TOOLS = ("awk", "bash", "cat", "cksum", "cut", "dirname", "find", "getent", "head", "hostname", "mkdir", "paste")
TOOLS += ("realpath", "rm", "sed", "sha256sum", "sleep", "sort")
STUDY = ["Random", "Random_SteppedLR", "Random_Validation", "Lorraine", "Baydin", "Ours_LR", "Ours_LR_Momentum"]
STUDY += ["Ours_HDLR_Momentum", "DiffThroughOpt"]


@pytest.fixture
def tools(tmp_path: Path) -> dict[str, str]:
    """An environment with the usual tools and a python that does nothing, and without SLURM."""
    folder = tmp_path / "tools"
    folder.mkdir()
    for tool in TOOLS:
        (folder / tool).symlink_to(str(shutil.which(tool)))
    script(folder / "python", "exit 0")
    return {"PATH": str(folder), "HYPEROPT_ID_SITE": ""}


def script(path: Path, content: str) -> None:
    path.write_text(f"#!/bin/sh\n{content}\n")
    path.chmod(0o755)


def submit(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([SCRIPTS / "submit.sh", *arguments], env=environment, capture_output=True, text=True)


MISTAKES = {
    "no data set": ([], "name the data set first, as in: submit.sh cifar10"),
    "an unknown data set": (["cifar"], "unknown data set cifar; there are: cifar10 csv diabetes"),
    "an algorithm for a data set": (["Random"], "unknown data set Random; there are: cifar10 csv diabetes"),
    "an unknown algorithm": (
        ["cifar10", "--algorithms", "Random", "Ours"],
        "unknown algorithm Ours; there are: Baydin DiffThroughOpt",
    ),
    "no limit": (["digits"], "no time limit for Random on digits: give --time, or add a line to"),
    "no starts": (["cifar10", "--starts", "0"], "--starts must be a whole number above 0, not 0"),
    "no value": (["cifar10", "-l"], "cannot make sense of: -l ; submit.sh --help shows the options"),
    "an unknown option": (["cifar10", "--start", "3"], "cannot make sense of: --start 3; submit.sh --help"),
    "no SLURM": (
        ["cifar10"],
        "sbatch is not found: submit where SLURM is installed, or see the commands with --only-print",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_and_nothing_is_made(mistake, tools, tmp_path):
    arguments, line = MISTAKES[mistake]
    done = submit(tools, *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: {line}")
    assert done.stderr.count("\n") == 1


def test_a_site_file_that_is_not_there_is_one_line(tools, tmp_path):
    done = submit({**tools, "HYPEROPT_ID_SITE": str(tmp_path / "none.sh")}, "cifar10")
    assert (done.returncode, done.stderr) == (
        2,
        f"error: HYPEROPT_ID_SITE names {tmp_path}/none.sh, which is not there\n",
    )


def test_mistakes_about_the_ray_job_are_one_line_each(tools, tmp_path):
    elsewhere = subprocess.run([SCRIPTS / "parallel_exec.sh"], cwd=tmp_path, env=tools, capture_output=True, text=True)
    assert (elsewhere.returncode, elsewhere.stderr) == (
        2,
        f"error: submit in the root of the repository, not in {tmp_path}\n",
    )
    no_ray = subprocess.run([SCRIPTS / "parallel_exec.sh"], cwd=ROOT, env=tools, capture_output=True, text=True)
    assert no_ray.returncode == 2
    assert no_ray.stderr.startswith("error: ray is not found: install the extra 'baselines'")


def test_a_mistake_in_an_override_is_train_py_s_line(tools):
    python = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "HYPEROPT_ID_SITE": ""}
    done = submit(python, "cifar10", "--algorithms", "Random", "--only-print", "-s", "inner.update=3")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: --set: inner.update: unknown key; did you mean inner.updates?")


@pytest.mark.parametrize("data_set", ["penn_treebank", "cifar10"])
def test_the_study_is_nine_arrays_of_fifty_starts_each_with_its_limit(data_set, tools, tmp_path):
    done = submit(tools, data_set, "--only-print", "-l", str(tmp_path / "runs"), "-s", "a=b c", "--", "--gpus=1")
    commands = {words[-3]: words for words in map(shlex.split, done.stdout.splitlines())}
    assert sorted(commands) == sorted(STUDY)
    limits = [line.split() for line in (SCRIPTS / "time_limits.txt").read_text().splitlines() if line[0] != "#"]
    for name, limit in [(name, limit) for data, name, limit in limits if data == data_set]:
        assert {"--array=0-49", f"--time={limit}", "--gpus=1"} < set(commands.pop(name))
    assert not commands
    assert not (tmp_path / "runs").exists()


def test_a_site_file_reaches_sbatch_and_every_task(tools, tmp_path):
    site = tmp_path / "a site.sh"
    site.write_text("export SBATCH_PARTITION=fast")
    script(tmp_path / "tools" / "sbatch", f'echo "$SBATCH_PARTITION" "$@" >>"{tmp_path}/submitted"; echo 17')
    done = submit({**tools, "HYPEROPT_ID_SITE": str(site)}, "cifar10", "--algorithms", "Lorraine", "-l", str(tmp_path))
    assert done.stdout == f"job array 17: Lorraine on cifar10, starts 0 to 49, into {tmp_path}/cifar10\n", done.stderr
    submitted = (tmp_path / "submitted").read_text()
    assert submitted.startswith("fast --parsable ")
    assert submitted.endswith(f"/member.sh {site} cifar10 Lorraine {tmp_path}\n")


def test_a_site_file_may_be_one_for_shells_that_are_less_strict(tools, tmp_path):
    """As conda's scripts are, and those of modules."""
    site = tmp_path / "site.sh"
    site.write_text('export SBATCH_PARTITION=fast\n[ "$CONDA_SHLVL" ] && conda deactivate\nfalse\n')
    environment = {**tools, "HYPEROPT_ID_SITE": str(site)}
    submitted = submit(environment, "cifar10", "--only-print")
    assert (submitted.returncode, submitted.stderr) == (0, "")
    assert task(tools, tmp_path, site=str(site)).wait() == 0
    no_ray = subprocess.run([SCRIPTS / "parallel_exec.sh"], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert no_ray.stderr.startswith("error: ray is not found")


def task(environment: dict[str, str], directory: Path, *overrides: str, site: str = "") -> subprocess.Popen[bytes]:
    """Start 3 of Ours_LR on digits, as a task of an array would do it."""
    command = [SCRIPTS / "member.sh", site, "digits", "Ours_LR", str(directory), *overrides]
    return job({**environment, "SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_JOB_ID": "17"}, directory, command)


def job(environment: dict[str, str], directory: Path, command: list[str | Path]) -> subprocess.Popen[bytes]:
    with open(directory / "said", "a") as said:
        return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=said, stderr=said, start_new_session=True)


def test_a_task_continues_what_it_finds_and_leaves_alone_what_is_finished(tmp_path):
    python = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    whole, run = tmp_path / "whole", tmp_path / "digits" / "Ours_LR_003"
    assert cli.train([*config("digits", "Ours_LR"), *into(whole), "--seed", "3", "--sample", "-s", *TINY]) == 0
    interrupted(whole, run, update=0)  # it has a config and no checkpoint
    assert task(python, tmp_path, *TINY).wait() == 0
    assert_same_run(whole, run)
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    assert task(python, tmp_path, *TINY).wait() == 0
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


# When time is up


LATEST = Path("checkpoints") / "latest"  # in a run directory
STAND_INS = {  # for the Ray job on one node
    "ray": """exec {python} -c '
import socket, sys, time
(port,) = (int(word[7:]) for word in sys.argv if word.startswith("--port="))
with socket.create_server(("127.0.0.1", port)):
    time.sleep(60)' "$@\"""",
    "srun": 'while [ "${{1#--}}" != "$1" ]; do shift; done; exec "$@"',
    # of the nodes, of the arguments, and what trains
    "python": 'case "$1 $2" in "- "*:*) exit 0 ;; "- "*) exec {python} "$@" ;; esac\n{training}',
}


def training(latest: Path, further: bool) -> str:
    """What stands in for a training that comes from the first checkpoint to the second, or not, while another one in
    the same folder does."""
    other = latest.parents[3] / "others" / "Ours_LR_003" / LATEST
    for path in (latest, other):
        path.parent.mkdir(parents=True)
        path.write_text("step_1.pt")
    run = f'printf step_{1 + further}.pt >"{latest}"; printf step_2.pt >"{other}"'
    return f'{run}; : >"{latest}.started"; exec sleep 60'


def struck(running: subprocess.Popen[bytes], latest: Path) -> int:
    """Its exit status when it is told, in the middle, that time is up."""
    try:
        assert wait_for(Path(f"{latest}.started").exists, lambda: running.poll() is not None)
        running.send_signal(signal.SIGUSR1)
        return running.wait(timeout=60)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(running.pid, signal.SIGKILL)


@pytest.mark.parametrize("further", [True, False])
@pytest.mark.parametrize("kind", ["task", "Ray job", "Ray job of a group"])
def test_when_time_is_up_a_job_is_requeued_if_it_came_further(kind, further, tools, tmp_path):
    """Otherwise it would go on for ever."""
    requeued, number = tmp_path / "requeued", str(os.getpid())
    run = {
        "task": "digits/Ours_LR_003",
        "Ray job": "digits/Custom_000-000",
        "Ray job of a group": "runs/Custom_000-000",
    }[kind]
    train = training(tmp_path / run / LATEST, further)
    scontrol = f'[ $1 = show ] && echo "Name=n NodeAddr=127.0.0.1 " && exit\necho "$@" >"{requeued}"; kill -TERM 0'
    script(tmp_path / "tools" / "scontrol", scontrol)  # it ends all of the job, as SLURM does
    if kind == "task":
        script(tmp_path / "tools" / "python", train)
        running = task(tools, tmp_path)
    else:
        for name, content in STAND_INS.items():
            script(tmp_path / "tools" / name, content.format(python=sys.executable, training=train))
        slurm = {"SLURM_JOB_ID": number, "SLURM_JOB_NUM_NODES": "1", "SLURMD_NODENAME": "n", "SLURM_CPUS_ON_NODE": "1"}
        command = [SCRIPTS / "parallel_exec.sh", "-c", "configs/digits.yaml", "-l", str(tmp_path)]
        command += ["-g", "runs"] if kind == "Ray job of a group" else []
        running = job({**tools, **slurm}, tmp_path, command)
    assert struck(running, tmp_path / run / LATEST) == (-signal.SIGTERM if further else 1)
    said = (tmp_path / "said").read_text().splitlines()
    if further:
        assert any(line.startswith("time is up") and line.endswith(": requeued") for line in said), said
        assert requeued.read_text() == ("requeue 17_3\n" if kind == "task" else f"requeue {number}\n")
    else:
        assert "error: no checkpoint within the time limit; raise the limit, or lower report.checkpoint_every" in said
        assert not requeued.exists()
