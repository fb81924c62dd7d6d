"""Files of the cache are whole and the user's own, or count as missing; the ones used last stay."""

import os
import time

import pytest

from hyperopt_id import cli, user_cache


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HYPEROPT_ID_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def program(name="one", content=b"content"):
    path = user_cache.private(user_cache.PROGRAMS) / f"{name}.so"
    user_cache.store(path, content)
    return path


def test_a_private_folder_is_the_users_alone(folder):
    path = user_cache.private("programs")
    assert path.stat().st_mode & 0o777 == 0o700
    assert user_cache.private("programs") == path


DAMAGE = {
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "empty": lambda path: path.write_bytes(b""),
    "edited": lambda path: path.write_bytes(b"C" + path.read_bytes()[1:]),
    "gone": lambda path: path.unlink(),
    "for others to write": lambda path: path.chmod(0o666),
    "for a group to write": lambda path: path.chmod(0o664),
    "a link": lambda path: path.rename(path.with_name("moved")) and path.symlink_to("moved"),
    "a folder": lambda path: path.unlink() or path.mkdir(),
    "a pipe": lambda path: path.unlink() or os.mkfifo(path),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_what_is_damaged_or_foreign_counts_as_missing(name):
    path = program()
    assert user_cache.is_usable(path)
    DAMAGE[name](path)
    assert not user_cache.is_usable(path)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
@pytest.mark.parametrize("what", ["file", "folder"])
def test_what_belongs_to_another_user_is_not_executed(what):
    path = program()
    os.chown(path if what == "file" else path.parent, 12345, 12345)
    if what == "file":
        assert not user_cache.is_usable(path)
    else:
        with pytest.raises(RuntimeError, match="can be changed by others"):
            user_cache.private(user_cache.PROGRAMS)


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o1777])
def test_a_folder_that_others_may_write_is_refused(mode):
    program().parent.chmod(mode)
    with pytest.raises(RuntimeError, match="can be changed by others") as raised:
        user_cache.private(user_cache.PROGRAMS)
    assert "\n" not in str(raised.value)


def test_a_folder_that_cannot_be_made_says_so(folder):
    folder.write_text("a file")
    with pytest.raises(RuntimeError, match="set HYPEROPT_ID_CACHE to a folder that can be written"):
        user_cache.private(user_cache.PROGRAMS)


def test_the_ones_used_longest_ago_are_dropped(monkeypatch):
    paths = [program(name, bytes(1000)) for name in ("a", "b", "c")]
    for age, path in enumerate(paths):
        os.utime(path, (0, time.time() - 1000 * (age + 1)))
    assert user_cache.is_usable(paths[2])  # the oldest one is used now
    monkeypatch.setattr(user_cache, "BYTES_KEPT", 3200)
    program("d", bytes(1000))
    assert [path.exists() for path in paths] == [True, False, True]
    monkeypatch.setattr(user_cache, "BYTES_KEPT", 10)
    assert program("e", bytes(1000)).exists()  # one that is too large by itself serves its own run
    assert len(user_cache.contents()) == 1


def test_a_lock_is_seen_while_it_is_held(folder):
    path = user_cache.private("programs") / "one.lock"
    assert not user_cache.is_locked(path)
    with user_cache.locked(path):
        assert user_cache.is_locked(path)
    assert not user_cache.is_locked(path)


def test_the_command_lists_and_clears_what_is_the_caches(folder, capsys):
    assert cli.main(["cache"]) == 0
    assert capsys.readouterr().out == f"0 entries, 0.0 MB, in {folder}\n"
    program("one", bytes(2_000_000))
    kernel = folder / f"mulo_cpu-{'0' * 16}-{'1' * 16}.so"
    kernel.write_bytes(bytes(1_000_000))
    headers = folder / "programs" / "torch" / "tmp" / "headers.h.gch"
    headers.parent.mkdir(parents=True)
    headers.write_bytes(bytes(4_000_000))
    other = folder / "mine.so"
    other.write_text("not of this program")
    assert cli.main(["cache", "--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["kernel", "program", "compiler", "3"]
    assert lines[-1] == f"3 entries, 7.0 MB, in {folder}"
    assert cli.main(["cache", "--clear"]) == 0
    assert capsys.readouterr().out == f"removed 3 entries, 7.0 MB, in {folder}\n"
    assert [path.name for path in folder.iterdir()] == ["mine.so"]


def test_what_is_cleared_while_a_program_is_compiled_leaves_the_compiler_its_place(folder, capsys):
    path = program(name="0" * 16)
    headers = path.parent / user_cache.SCRATCH / "headers.h.gch"
    headers.parent.mkdir()
    headers.write_bytes(bytes(4_000_000))
    with user_cache.locked(path.with_name(f"{'1' * 16}.lock")) as lock:
        assert cli.main(["cache", "--clear"]) == 0
        assert capsys.readouterr().out.startswith("removed 1 entries")
        assert headers.exists()
        assert os.fstat(lock).st_nlink == 1
    assert [entry.kind for entry in user_cache.contents()] == ["compiler"]
    user_cache.store(path, b"compiled")  # by the compiler, at its end
    assert [entry.kind for entry in user_cache.contents()] == ["program", "compiler"]
    assert cli.main(["cache", "--clear"]) == 0
    assert not path.parent.exists()


def test_a_folder_of_that_name_with_other_things_is_left_alone(folder, capsys):
    mine = folder / "programs" / "torch" / "mine.py"
    library = folder / "programs" / "mine.so"
    mine.parent.mkdir(parents=True, mode=0o700)
    mine.parent.parent.chmod(0o700)
    for path in (mine, library):
        path.write_text("not of this program")
    with pytest.raises(RuntimeError, match="holds other things than programs"):
        user_cache.private(user_cache.PROGRAMS)
    for option in ("--list", "--clear"):
        assert cli.main(["cache", option]) == 0
        assert "0 entries" in capsys.readouterr().out
    assert mine.exists()
    assert library.exists()


def test_a_folder_of_an_earlier_version_is_the_caches(folder):
    path = program(name="0" * 16)
    (path.parent / user_cache.TAG).unlink()
    assert user_cache.private(user_cache.PROGRAMS) == path.parent
    assert [entry.path for entry in user_cache.contents()] == [path]
