"""Data sets that Debian packages: from the installed package, or downloaded without root rights."""

import os
import shutil
import subprocess
import sysconfig
import time
from collections.abc import Sequence
from pathlib import Path

from hyperopt_id.tasks.fetch import Source, Unavailable, progress, say

POLL_SECONDS = 0.2
OPTIONS = (
    "-oAPT::Sandbox::User=",  # apt's own unprivileged user could not write into a private folder
    "-oAcquire::Retries=1",  # a machine without network answers soon instead of hanging
    "-oAcquire::http::Timeout=20",
    "-oAcquire::https::Timeout=20",
)


def installed(package: str, share: str) -> Source:
    """The files of an installed package, in the folder `share` below one of the system's share
    directories."""

    def provide(names: Sequence[str], scratch: Path) -> Path:
        for place in (*_package_folders(package), *(base / share for base in _share_directories())):
            if all((place / name).is_file() for name in names):
                return place
        raise Unavailable("the package is not installed")

    return Source(f"the installed package {package}", provide)


def downloaded(package: str, share: str) -> Source:
    """The files of the package itself, fetched with `apt-get download` and unpacked in a scratch folder."""

    def provide(names: Sequence[str], scratch: Path) -> Path:
        for program in ("apt-get", "dpkg-deb"):
            if shutil.which(program) is None:
                raise Unavailable(f"{program} does not exist on this machine")
        archive = _apt_download(package, scratch)
        _run(["dpkg-deb", "-x", str(archive), str(scratch / "unpacked")], scratch)
        for place in sorted((scratch / "unpacked").rglob(Path(share).name)):
            if all((place / name).is_file() for name in names):
                return place
        raise Unavailable(f"{archive.name} does not hold {', '.join(names)}")

    return Source(f"apt-get download {package}", provide)


def _apt_download(package: str, scratch: Path) -> Path:
    """The package file, in `scratch`. Where the machine's package lists are missing or out of date, lists
    are fetched into a private folder, which needs no root rights."""
    try:
        return _apt_get(package, scratch, OPTIONS)
    except Unavailable:
        say("  the package lists of this machine do not serve; fetching lists into a temporary folder")
    for name in ("lists/partial", "cache/archives/partial"):
        (scratch / name).mkdir(parents=True, exist_ok=True)
    private = (*OPTIONS, f"-oDir::State::lists={scratch / 'lists'}", f"-oDir::Cache={scratch / 'cache'}")
    _run(["apt-get", *private, "update"], scratch)
    return _apt_get(package, scratch, private)


def _apt_get(package: str, scratch: Path, options: Sequence[str]) -> Path:
    """Run `apt-get download`, showing how much of the package has arrived."""
    promise = _run(["apt-get", *options, "download", "--print-uris", package], scratch).split()
    if len(promise) < 3 or not promise[2].isdigit():
        raise Unavailable(f"apt-get knows no package {package}")
    total = int(promise[2])
    command = ["apt-get", *options, "-qq", "download", package]
    with (
        open(scratch / "apt.log", "w+") as log,
        progress(package, total) as bar,
        subprocess.Popen(command, cwd=scratch, stdout=log, stderr=log) as process,
    ):
        while process.poll() is None:
            time.sleep(POLL_SECONDS)
            bar.update(min(total, sum(part.stat().st_size for part in scratch.glob("*.deb"))) - bar.n)
        bar.update((total if process.returncode == 0 else bar.n) - bar.n)
        log.seek(0)
        message = log.read()
    archives = sorted(scratch.glob("*.deb"))
    if process.returncode != 0 or not archives:
        raise Unavailable(_last_line(message))
    return archives[0]


def _run(command: Sequence[str], folder: Path) -> str:
    """Standard output of a command; `Unavailable` with the last line of its complaint where it fails."""
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env={**os.environ, "LC_ALL": "C"})
    if done.returncode != 0:
        raise Unavailable(f"{' '.join(command[:1])}: {_last_line(done.stderr)}")
    return done.stdout


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1] if lines else "failed without a message"


def _package_folders(package: str) -> list[Path]:
    if shutil.which("dpkg") is None:
        return []
    listing = subprocess.run(["dpkg", "-L", package], capture_output=True, text=True)
    return [] if listing.returncode != 0 else [Path(line) for line in listing.stdout.splitlines() if line]


def _share_directories() -> list[Path]:
    """Where a system keeps architecture-independent files, by the XDG rule and by Python's own
    installation."""
    named = (os.environ.get("XDG_DATA_DIRS") or "/usr/local/share:/usr/share").split(":")
    return [*(Path(name) for name in named if name), Path(sysconfig.get_path("data")) / "share"]
