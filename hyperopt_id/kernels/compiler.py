"""A C++ or CUDA source becomes a loaded library: compiled at first use, once for a machine, into the user's cache.

    CACHE/<name>-<key>-<maker>.so    key = hash(source and what it includes, flags, processor), maker = hash(compiler)

CACHE and its files are those of `user_cache`. A lock lets one of several processes compile while the others wait; a
damaged library is made anew. Without a compiler, a library that another one has made will do.
"""

import contextlib
import ctypes
import functools
import logging
import os
import platform
import re
import shlex
import shutil
import socket
import subprocess
import sysconfig
import tempfile
from collections.abc import Iterator, Sequence
from glob import escape
from pathlib import Path

from hyperopt_id import user_cache

logger = logging.getLogger("hyperopt_id")
CXX_FLAGS = ("-std=c++17", "-O3", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC", "-pthread")
NVCC_FLAGS = ("-std=c++17", "-O3", "-shared", "-Xcompiler", "-fPIC", "-allow-unsupported-compiler")
_INCLUDE = re.compile(r'^\s*#\s*include\s*"(.+)"', re.MULTILINE)


class NoCompiler(RuntimeError):  # noqa: N818 - a state of the machine, as often as not
    """There is no compiler, it cannot compile the source, or there is no place for the library."""


@functools.cache
def cpu_library(source: Path) -> ctypes.CDLL:
    """The library of a C++ source, made with $CXX, else the first of c++, g++, clang++ that there is."""
    return library(source, "CXX", ("c++", "g++", "clang++"), CXX_FLAGS)


@functools.cache
def cuda_library(source: Path, capability: str) -> ctypes.CDLL:
    """The library of a CUDA source for a compute capability, as "90", made with the first of `cuda_compilers`."""
    with contextlib.suppress(NoCompiler):
        capability = newest_architecture(find_compiler("NVCC", cuda_compilers()), capability)
    return library(source, "NVCC", cuda_compilers(), cuda_flags([capability]))


def cuda_compilers() -> list[str]:
    """Commands for where nvcc may be: $CUDA_HOME, the path, its usual folder, a Python package (not set up to link)."""
    folders = [os.environ[name] for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    packages = sorted(map(str, Path(sysconfig.get_path("purelib")).glob("nvidia/*/bin/nvcc")))
    return [
        *(shlex.quote(f"{folder}/bin/nvcc") for folder in folders),
        "nvcc",
        "/usr/local/cuda/bin/nvcc",
        *(shlex.join([nvcc, f"-L{Path(nvcc).parents[1] / 'lib'}"]) for nvcc in packages),
    ]


def newest_architecture(nvcc: str, capability: str) -> str:
    """The newest one that nvcc knows and a device of this capability can run."""
    known = re.findall(r"^compute_(\d+)$", run(nvcc, "--list-gpu-arch").stdout, re.MULTILINE)
    return max((number for number in known if int(number) <= int(capability)), key=int, default=capability)


def cuda_flags(architectures: Sequence[str]) -> tuple[str, ...]:
    """What nvcc is called with: for each architecture machine code, and what drivers compile for later ones."""
    targets = (f"-gencode=arch=compute_{number},code=[sm_{number},compute_{number}]" for number in architectures)
    return (*NVCC_FLAGS, *targets)


def library(source: Path, variable: str, names: Sequence[str], flags: Sequence[str]) -> ctypes.CDLL:
    """The library of a source, compiled by `find_compiler(variable, names)`, or before by any other."""
    try:
        return load(source, find_compiler(variable, names), flags)
    except NoCompiler:
        with contextlib.suppress(OSError):  # of a folder that cannot be read
            for path in cache_folder().glob(f"{_name(source, flags)}-*.so"):
                if user_cache.is_whole(path):
                    return _open(path)
        raise


def find_compiler(variable: str, names: Sequence[str]) -> str:
    """The command that an environment variable names, else the first one on the path; NoCompiler where none is."""
    named = os.environ.get(variable)
    for command in [named] if named else names:
        with contextlib.suppress(ValueError, IndexError):  # a quotation that does not end; nothing but spaces
            if shutil.which(shlex.split(command)[0]):
                return command
    wanted = f"{variable}={named}" if named else f"{', '.join(names)} (or set {variable})"
    raise NoCompiler(f"no compiler found: {wanted}")


def load(source: Path, compiler: str, flags: Sequence[str]) -> ctypes.CDLL:
    """Compile unless the cache has the library, and load it."""
    folder, maker = cache_folder(), user_cache.digest(compiler, run(compiler, "--version").stdout)
    path = folder / f"{_name(source, flags)}-{maker}.so"
    try:
        if not user_cache.is_whole(path):
            folder.mkdir(parents=True, exist_ok=True)
            with user_cache.locked(folder / f"{source.stem}.lock"):
                if not user_cache.is_whole(path):  # another process may have made it meanwhile
                    compile_to(path, source, compiler, flags)
    except OSError as error:
        wanted = "set HYPEROPT_ID_CACHE to a folder that can be written"
        raise NoCompiler(f"no compiled kernel can be kept in {folder} ({error.strerror}): {wanted}") from error
    return _open(path)


def compile_to(path: Path, source: Path, compiler: str, flags: Sequence[str]) -> None:
    """Compile a source into a library file, which is there only when complete."""
    logger.info("compiling %s with %s, once", source.name, compiler)
    mine = f"build-{socket.gethostname()}-"
    _remove_abandoned(path.parent, mine)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f"{mine}{os.getpid()}-") as folder:
        partial = Path(folder) / path.name
        done = run(compiler, *flags, str(source), "-o", str(partial))
        if done.returncode:
            lines = done.stderr.strip().splitlines() or [f"it ended with status {done.returncode}"]
            first = next((line for line in lines if "error:" in line), lines[0])
            raise NoCompiler(f"{compiler} cannot compile {source.name}: {first}")
        user_cache.seal(partial)
        partial.replace(path)


def _remove_abandoned(folder: Path, prefix: str) -> None:
    """Remove what processes of this machine were compiling when they were killed."""
    for left in folder.glob(f"{escape(prefix)}*"):
        number = left.name.removeprefix(prefix).partition("-")[0]
        if number.isdecimal() and not Path(f"/proc/{number}").exists() and Path("/proc/self").exists():
            shutil.rmtree(left, ignore_errors=True)


def cache_folder() -> Path:
    """Where compiled kernels are kept."""
    try:
        return user_cache.folder()
    except RuntimeError as error:
        raise NoCompiler("compiled kernels have no place, as there is no home folder: set HYPEROPT_ID_CACHE") from error


def _open(path: Path) -> ctypes.CDLL:
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:  # made on another machine, say, for another version of the C library
        raise NoCompiler(f"the compiled kernel cannot be loaded: {error}") from error


def _name(source: Path, flags: Sequence[str]) -> str:
    return f"{source.stem}-{user_cache.digest(*_texts(source), *flags, platform.machine())}"


def _texts(source: Path) -> Iterator[str]:
    """The source, and what it includes of our own, as often as it does."""
    text = source.read_text()
    yield text
    for name in _INCLUDE.findall(text):
        yield from _texts(source.parent / name)


def run(compiler: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "LC_ALL": "C"}  # errors in English, where "error:" is found
    command = [*shlex.split(compiler), *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, errors="replace", env=environment)
    except OSError as error:
        raise NoCompiler(f"{compiler} cannot be run: {error.strerror}") from error
