"""A source is compiled once, by whoever comes first; what is in the cache is whole, or made anew."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hyperopt_id.kernels import compiler
from hyperopt_id.kernels.__main__ import main
from hyperopt_id.kernels.compiler import NoCompiler

FLAGS = ("-shared", "-fPIC")
NAMES = ("c++", "g++", "clang++")

pytestmark = pytest.mark.skipif(
    not any(os.access(Path(folder) / name, os.X_OK) for folder in os.get_exec_path() for name in NAMES),
    reason="needs a C++ compiler",
)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HYPEROPT_ID_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("CXX", raising=False)
    return tmp_path / "cache"


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "answer.cpp"
    path.write_text('#include "number.h"\nextern "C" int answer() { return NUMBER; }\n')
    (tmp_path / "number.h").write_text("#define NUMBER 42\n")
    return path


@pytest.fixture
def counting(tmp_path, monkeypatch):
    """A compiler that takes its time, and leaves a line for every library."""
    script, log = tmp_path / "counting compiler", tmp_path / "log"
    script.write_text(
        f'#!/bin/sh\ncase "$*" in *--version*) echo 1; exit;; esac\necho . >> "{log}"\nsleep 0.5\nexec c++ "$@"\n'
    )
    script.chmod(0o755)
    monkeypatch.setenv("CXX", f"'{script}' -O1")  # a command of several words
    return lambda: len(log.read_text().split()) if log.exists() else 0


def library(source):
    return compiler.library(source, "CXX", NAMES, FLAGS)


def made(cache):
    return sorted(cache.glob("*.so"))


def test_a_source_is_compiled_once_and_again_when_it_or_what_it_includes_changes(source, cache, counting):
    assert library(source).answer() == 42
    assert library(source).answer() == 42
    assert counting() == len(made(cache)) == 1
    (source.parent / "number.h").write_text("#define NUMBER 43\n")
    assert library(source).answer() == 43
    assert counting() == len(made(cache)) == 2
    compiler.library(source, "CXX", NAMES, (*FLAGS, "-O2"))
    assert counting() == len(made(cache)) == 3


@pytest.mark.parametrize("keep", [0.0, 0.3, 0.999], ids=["empty", "truncated", "a little short"])
def test_a_damaged_library_is_made_anew(source, cache, counting, keep):
    library(source)
    (path,) = made(cache)
    content = path.read_bytes()
    path.unlink()  # a loaded library must not be written over
    path.write_bytes(content[: int(keep * len(content))])
    assert library(source).answer() == 42
    assert counting() == 2
    assert len(path.read_bytes()) == len(content)


def test_processes_that_come_at_once_compile_once(source, cache, counting):
    code = f"""
import importlib.util, pathlib
spec = importlib.util.spec_from_file_location("compiler", {compiler.__file__!r})
compiler = importlib.util.module_from_spec(spec)
spec.loader.exec_module(compiler)
print(compiler.library(pathlib.Path({str(source)!r}), "CXX", {NAMES!r}, {FLAGS!r}).answer())
"""
    running = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(3)]
    assert [process.communicate()[0] for process in running] == ["42\n"] * 3
    assert counting() == len(made(cache)) == 1
    assert [path.name for path in cache.iterdir() if path.suffix != ".so"] == ["answer.lock"]


def test_without_a_compiler_what_another_has_made_will_do(source, monkeypatch):
    library(source)
    monkeypatch.setenv("CXX", "nowhere")
    assert library(source).answer() == 42
    (source.parent / "number.h").write_text("#define NUMBER 43\n")
    with pytest.raises(NoCompiler, match="no compiler found: CXX=nowhere"):
        library(source)


def test_names_are_tried_in_order_and_a_variable_comes_first(monkeypatch, tmp_path):
    assert compiler.find_compiler("CXX", ("nothing-such", "sh", "env")) == "sh"
    monkeypatch.setenv("CXX", "env -u X")
    assert compiler.find_compiler("CXX", ("sh",)) == "env -u X"
    monkeypatch.delenv("CXX")
    with pytest.raises(NoCompiler, match=r"no compiler found: a-a, b-b \(or set CXX\)"):
        compiler.find_compiler("CXX", ("a-a", "b-b"))


def test_an_error_of_the_compiler_is_one_line(source, cache):
    source.write_text('extern "C" int answer() { return missing; }\nint more = "text";\n')
    with pytest.raises(NoCompiler) as raised:
        library(source)
    assert "cannot compile answer.cpp" in str(raised.value)
    assert "missing" in str(raised.value)
    assert "\n" not in str(raised.value)
    assert [path.name for path in cache.iterdir()] == ["answer.lock"]


@pytest.mark.parametrize(
    ("script", "message"),
    [
        (b"\x7fELF of another machine", "cannot be run: Exec format error"),
        (b"#!/nowhere\n", "cannot be run: No such file or directory"),
        (b"#!/bin/sh\nprintf 'what\\nis this\\n' >&2\nexit 1\n", "cannot compile answer.cpp: what"),
        (b"#!/bin/sh\nprintf '\\377 error: option' >&2\nexit 1\n", "cannot compile answer.cpp: .* error: option"),
        (b"#!/bin/sh\nkill -9 $$\n", "cannot compile answer.cpp: it ended with status -9"),
    ],
)
def test_a_compiler_that_does_not_work_is_one_line(source, tmp_path, monkeypatch, script, message):
    path = tmp_path / "broken"
    path.write_bytes(script)
    path.chmod(0o755)
    monkeypatch.setenv("CXX", str(path))
    with pytest.raises(NoCompiler, match=f"broken {message}") as raised:
        library(source)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("command", ["'c++", " "])
def test_a_command_that_is_none_is_no_compiler(command, monkeypatch):
    monkeypatch.setenv("CXX", command)
    with pytest.raises(NoCompiler, match=f"no compiler found: CXX={command}"):
        compiler.find_compiler("CXX", NAMES)


@pytest.mark.parametrize("name", ["file/cache", "long" * 100], ids=["in a file", "not to be looked at"])
def test_a_cache_that_cannot_be_written_says_so(name, source, cache, tmp_path, monkeypatch):
    library(source)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HYPEROPT_ID_CACHE", str(tmp_path / name))
    with pytest.raises(NoCompiler, match="set HYPEROPT_ID_CACHE to a folder that can be written") as raised:
        library(source)
    assert "\n" not in str(raised.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_cache_that_is_read_only_is_read(source, cache):
    library(source)
    cache.chmod(0o555)
    try:
        assert library(source).answer() == 42
    finally:
        cache.chmod(0o755)


def test_the_cache_may_be_the_folder_one_is_in(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HYPEROPT_ID_CACHE", ".")
    assert library(source).answer() == 42


def test_where_the_cache_is(monkeypatch):
    assert compiler.cache_folder() == Path(os.environ["HYPEROPT_ID_CACHE"])
    monkeypatch.delenv("HYPEROPT_ID_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert compiler.cache_folder() == Path("/somewhere/hyperopt_id")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/me")
    assert compiler.cache_folder() == Path("/home/me/.cache/hyperopt_id")
    monkeypatch.delenv("HOME")
    known = compiler.cache_folder()  # of the system's users
    for home in ("", "here"):
        monkeypatch.setenv("HOME", home)
        monkeypatch.setenv("XDG_CACHE_HOME", home)
        assert compiler.cache_folder() == known


def test_a_machine_without_a_home_says_so(monkeypatch):
    for name in ("HYPEROPT_ID_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    with pytest.raises(NoCompiler, match="set HYPEROPT_ID_CACHE"):
        compiler.cache_folder()


def test_a_library_for_another_system_is_no_kernel(source, cache, counting, monkeypatch):
    library(source)
    (path,) = made(cache)
    elsewhere = cache.with_name("elsewhere")  # what is loaded already, by name, is not read again
    elsewhere.mkdir()
    content = b"not for this machine"
    (elsewhere / path.name).write_bytes(content + hashlib.sha256(content).digest())
    monkeypatch.setenv("HYPEROPT_ID_CACHE", str(elsewhere))
    with pytest.raises(NoCompiler, match="cannot be loaded"):
        library(source)


def test_kernels_are_compiled_ahead_of_time(cache, monkeypatch, capsys):
    compiler.cpu_library.cache_clear()
    assert main(["cpu"]) == 0
    assert [path.name.split("-")[0] for path in made(cache)] == ["mulo_cpu"]
    monkeypatch.setenv("HYPEROPT_ID_CACHE", str(cache / "empty"))
    monkeypatch.setenv("CXX", "nowhere")
    compiler.cpu_library.cache_clear()
    assert main(["cpu"]) == 1
    assert main(["abacus"]) == 1
    assert capsys.readouterr().out.splitlines() == [
        f"cpu: compiled, in {cache}",
        "cpu: no compiler found: CXX=nowhere",
        "abacus: there is no kernel for abacus",
    ]


@pytest.fixture
def nvcc(tmp_path, monkeypatch):
    """One that knows two architectures and says what it is asked for."""
    script, log = tmp_path / "cuda 13" / "bin" / "nvcc", tmp_path / "log"
    script.parent.mkdir(parents=True)
    known = "printf 'compute_80\\ncompute_90\\n'"
    script.write_text(
        f'#!/bin/sh\ncase "$*" in *--version*) echo 13; exit;; *--list-gpu-arch*) {known}; exit;; esac\n'
        f'echo "$*" >> "{log}"\nfor word; do last=$word; case $word in *.cpp) source=$word;; esac; done\n'
        'exec c++ -shared -fPIC "$source" -o "$last"\n'
    )
    script.chmod(0o755)
    monkeypatch.delenv("NVCC", raising=False)
    monkeypatch.setenv("CUDA_HOME", str(script.parents[1]))
    return log


@pytest.mark.parametrize(("capability", "architecture"), [("80", "80"), ("86", "80"), ("90", "90"), ("121", "90")])
def test_a_gpu_newer_than_nvcc_has_what_its_driver_compiles(source, nvcc, capability, architecture):
    assert compiler.cuda_library.__wrapped__(source, capability).answer() == 42
    assert f"-gencode=arch=compute_{architecture},code=[sm_{architecture},compute_{architecture}]" in nvcc.read_text()


def test_nvcc_may_be_a_package_of_python(nvcc, tmp_path, monkeypatch):
    package = tmp_path / "site" / "nvidia" / "cu13" / "bin" / "nvcc"
    package.parent.mkdir(parents=True)
    package.symlink_to(tmp_path / "cuda 13" / "bin" / "nvcc")
    monkeypatch.delenv("CUDA_HOME")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path / "site"))
    *_, last = compiler.cuda_compilers()
    assert last == f"{package} -L{package.parents[1] / 'lib'}"
    assert compiler.find_compiler("NVCC", [last]) == last
