"""A program is compiled once for a machine, computes what its graph says, and is made anew where it is damaged."""

import os
import signal
import subprocess
import sys
import threading

import pytest
import torch
from laws import assert_close, random

from hyperopt_id import compilation, compilation_program, user_cache
from hyperopt_id.compilation_graph import Graph, trace
from hyperopt_id.compilation_program import NotCompiled, compile_later, compile_now, load, program

pytestmark = pytest.mark.skipif(
    compilation.obstacle(torch.device("cpu")) is not None, reason=f"{compilation.obstacle(torch.device('cpu'))}"
)
HELD = random(3, seed=9)


def function(x, y):
    return {"sum": torch.tanh(x @ y).sum(0) * HELD, "same": x}


ARGUMENTS = [random(2, 4, seed=1), random(4, 3, seed=2)]


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("HYPEROPT_ID_CACHE", str(folder))
        patch.delenv("HYPEROPT_ID_COMPILE_LATER")
        yield folder


@pytest.fixture(scope="module")
def wanted(cache):
    found = program(trace(function, ARGUMENTS), 1)
    assert not found.is_there()
    assert compile_now([found, found], 1) == {}
    return found


def test_nothing_is_compiled_twice_and_the_graph_is_computed(wanted, monkeypatch):
    monkeypatch.setattr(compilation_program, "_start", None)
    again = program(trace(function, ARGUMENTS), 1)
    assert again.path == wanted.path
    assert compile_now([again], 1) == {}
    assert not again.is_being_made()
    for callers in (1, 2):
        call = load(again, callers)
        for seed in range(3):
            given = [random(2, 4, seed=seed), random(4, 3, seed=seed + 10)]
            assert_close(call(given), function(*given), 1e-12)


def test_threads_may_call_it_together(wanted):
    call, wrong = load(wanted, 4), []

    def loop(seed):
        given = [random(2, 4, seed=seed), random(4, 3, seed=seed)]
        expected = call(given)
        wrong.extend(n for n in range(300) if not torch.equal(call(given)["sum"], expected["sum"]))

    threads = [threading.Thread(target=loop, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_what_a_program_depends_on_is_in_its_name(wanted, monkeypatch):
    graph = wanted.graph
    names = {wanted.path, program(graph, 2).path, program(graph._replace(text=graph.text + " "), 1).path}
    for name, value in [("TORCHINDUCTOR_FREEZING", "1"), ("AOT_INDUCTOR_DEBUG_COMPILE", "1")]:
        monkeypatch.setenv(name, value)
        names.add(program(graph, 1).path)
    torch.use_deterministic_algorithms(True)
    try:
        names.add(program(graph, 1).path)
    finally:
        torch.use_deterministic_algorithms(False)
    monkeypatch.setattr(torch, "__version__", "2.99")
    names.add(program(graph, 1).path)
    monkeypatch.setattr(compilation_program, "_processor", lambda: "another")
    names.add(program(graph, 1).path)
    assert len(names) == 8


@pytest.mark.parametrize("damage", ["cut", "for others to write", "no library"])
def test_a_damaged_or_foreign_program_is_not_loaded(wanted, damage, tmp_path, monkeypatch):
    copy = wanted._replace(path=tmp_path / wanted.path.name)
    copy.path.write_bytes(wanted.path.read_bytes()[: -1 if damage == "cut" else None])
    copy.path.chmod(0o666 if damage == "for others to write" else 0o600)
    if damage == "no library":
        user_cache.store(copy.path, b"no library")
    with pytest.raises(NotCompiled, match="cannot be loaded" if damage == "no library" else "is missing") as raised:
        load(copy, 1)
    assert "\n" not in str(raised.value)


def test_what_cannot_be_compiled_is_tried_once_and_says_why(monkeypatch):
    broken = program(
        Graph('{"inputs": [], "nodes": [["aten.nowhere.default", [], {}]], "outputs": []}', [], {}, 0.0), 1
    )
    reasons = compile_now([broken], 1)
    assert "nowhere" in reasons[broken.path]
    monkeypatch.setattr(compilation_program, "_start", None)
    assert compile_now([broken], 1) == reasons
    assert not compile_later([broken], 1)


def test_a_compiler_ends_with_who_waits_for_it(tmp_path):
    """Also if that is killed, so that nothing but the end of a pipe tells."""
    reading, writing = os.pipe()
    text = "import sys, time; from hyperopt_id.compilation_worker import watch; watch(int(sys.argv[1])); time.sleep(60)"
    command = [sys.executable, "-c", text, str(reading)]
    process = subprocess.Popen(command, pass_fds=[reading], start_new_session=True)
    os.close(reading)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.2)
    os.close(writing)
    assert process.wait() == -signal.SIGKILL


def test_a_system_that_gives_no_process_is_a_reason(wanted, monkeypatch):
    def none(*arguments, **settings):
        raise OSError(28, "No space left on device")

    other = wanted._replace(path=wanted.path.with_name("other.so"))
    monkeypatch.setattr(compilation_program, "_start", none)
    assert compile_now([wanted, other], 1) == {other.path: "No space left on device"}
    assert not compile_later([other], 1)


def test_a_damaged_program_is_compiled_anew_and_once_in_the_background(wanted):
    """While one process compiles, a start finds it being compiled, and another one does not compile beside it."""
    content = wanted.path.read_bytes()
    wanted.path.unlink()  # a loaded library must not be written over
    wanted.path.write_bytes(content[:1000])
    assert not wanted.is_there()
    assert compile_later([wanted], 1)
    assert wanted.is_being_made()
    assert not compile_later([wanted], 1)
    assert compile_now([wanted], 1) == {}  # waits for the one that is being made
    assert wanted.is_there()
    assert compilation_program._background.pop().wait() == 0


def test_without_a_place_programs_serve_their_own_process(tmp_path, monkeypatch, caplog):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HYPEROPT_ID_CACHE", str(tmp_path / "file"))
    found = program(trace(function, ARGUMENTS), 1)
    assert found.path.parent.is_dir()
    assert os.access(found.path.parent, os.W_OK)
    assert not compile_later([found], 1)
    assert "not kept for the next start" in caplog.text
