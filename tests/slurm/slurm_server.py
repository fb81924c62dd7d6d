"""A SLURM cluster for tests: two nodes of one CPU each, both this machine, on loopback and in a folder of its own.

    with slurm_server.running() as environment:  # with SLURM_CONF, by which sbatch, squeue, ... find it
        subprocess.run(["sbatch", "job.sh"], env=environment)

It needs Debian's packages `munge` and `slurm-wlm`, no rights and no configuration of the system. The daemons (munged,
slurmctld, two slurmd) are children of the caller, in the foreground, on free ports of 127.0.0.1 and with a key made for
the occasion, so that clusters meet neither each other nor one that the machine belongs to. They are ended by process
id, and by the system if the caller dies.
"""

import getpass
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])  # where daemons are
PROGRAMS = ("munged", "slurmctld", "slurmd", "setpriv")
NODES = ("node1", "node2")
SECONDS_TO_STOP = 10.0
# Seconds: KillWait from SIGTERM to SIGKILL; cred_expire (at least 5) until a requeued job may start; sched_interval
# between looks at waiting jobs.
CONFIGURATION = """\
ClusterName=test
FirstJobId={first_job}
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
NodeName=node1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=1 RealMemory=1000
NodeName=node2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=1 RealMemory=1000
PartitionName=test Nodes=ALL Default=YES MaxTime=INFINITE
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={directory}/munge.socket,cred_expire=5
StateSaveLocation={directory}/state
SlurmdSpoolDir={directory}/spool-%n
SlurmctldPidFile={directory}/slurmctld.pid
SlurmdPidFile={directory}/slurmd-%n.pid
SlurmctldLogFile={directory}/slurmctld.log
SlurmdLogFile={directory}/slurmd-%n.log
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
MailProg=/bin/true
ReturnToService=2
KillWait=1
OverTimeLimit=0
SchedulerParameters=sched_interval=1
"""


@contextmanager
def running() -> Iterator[dict[str, str]]:
    """The environment for users of a new cluster; a RuntimeError of one line says why there is none."""
    if missing := [program for program in PROGRAMS if shutil.which(program, path=PATH) is None]:
        raise RuntimeError(f"{', '.join(missing)} not found: install Debian's packages slurm-wlm and munge")
    with ExitStack() as stack:
        directory = Path(stack.enter_context(TemporaryDirectory(prefix="slurm-")))  # short, for a socket is in it
        _configure(directory)
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM", "SBATCH", "SRUN"))}
        environment |= {"PATH": PATH, "SLURM_CONF": str(directory / "slurm.conf")}
        daemons: list[subprocess.Popen[bytes]] = []

        def start(*command: str) -> None:
            with open(directory / "daemons.out", "ab") as output:
                ending_with_us = ["setpriv", "--pdeathsig", "TERM", *command]
                daemons.append(subprocess.Popen(ending_with_us, env=environment, stdout=output, stderr=output))
            stack.callback(_stop, daemons[-1])

        def until(condition: Callable[[], bool]) -> None:
            if not wait_for(condition, lambda: any(daemon.poll() is not None for daemon in daemons)):
                said = (directory / "daemons.out").read_text().splitlines()
                reason = [line for line in said if "rror" in line or "fatal" in line] or ["no reason given"]
                raise RuntimeError(f"SLURM did not start: {reason[-1]}")

        files = {"key-file": "key", "socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
        paths = [f"--{option}={directory}/munge.{suffix}" for option, suffix in files.items()]
        start("munged", "--foreground", "--force", *paths)  # force: only we may enter the folder
        until((directory / "munge.socket").exists)
        start("slurmctld", "-D", "-i")
        for node in NODES:
            start("slurmd", "-D", "-N", node)
        until(lambda: answer(environment, "sinfo", "-h", "-o", "%D %T") == f"{len(NODES)} idle")
        stack.callback(_end_jobs, environment)
        yield environment


def answer(environment: Mapping[str, str], *command: str) -> str:
    """What a command prints, its errors included."""
    asked = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return asked.stdout.strip()


def wait_for(
    condition: Callable[[], bool], in_vain: Callable[[], bool] = lambda: False, seconds: float = 120.0
) -> bool:
    """Whether `condition` comes true before `in_vain` does and before the time is over."""
    deadline = time.monotonic() + seconds
    while not condition():
        if in_vain() or time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def _configure(directory: Path) -> None:
    for folder in ("state", *(f"spool-{node}" for node in NODES)):
        (directory / folder).mkdir()
    (directory / "munge.key").write_bytes(os.urandom(1024))
    (directory / "munge.key").chmod(0o600)
    with ExitStack() as stack:
        listening = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(1 + len(NODES))]
        ports = [server.getsockname()[1] for server in listening]
    text = CONFIGURATION.format(
        directory=directory,
        host=socket.gethostname().split(".")[0],
        ports=ports,
        user=getpass.getuser(),
        first_job=10 * os.getpid(),  # jobs name files and choose ports by it: no other cluster's
    )
    (directory / "slurm.conf").write_text(text)
    (directory / "cgroup.conf").write_text("IgnoreSystemd=yes\n")


def _end_jobs(environment: Mapping[str, str]) -> None:
    answer(environment, "scancel", "--user", getpass.getuser())
    wait_for(lambda: not answer(environment, "squeue", "-h"), seconds=SECONDS_TO_STOP)


def _stop(daemon: subprocess.Popen[bytes]) -> None:
    daemon.terminate()
    try:
        daemon.wait(SECONDS_TO_STOP)
    except subprocess.TimeoutExpired:
        daemon.kill()
        daemon.wait()
