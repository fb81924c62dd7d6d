"""Fetching: sources in turn, checksums, atomic files, clear errors. A local server stands in for mirrors."""

import functools
import gzip
import hashlib
import http.server
import os
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from hyperopt_id.tasks import debian
from hyperopt_id.tasks import fetch as fetching
from hyperopt_id.tasks.fetch import Source, Unavailable, fetch, read_verified, web, write_atomically

CONTENT = b"something worth having " * 1000
CHECKSUM = f"sha256:{hashlib.sha256(CONTENT).hexdigest()}"


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *arguments) -> None:  # noqa: A002 - the name in the base class
        pass


@pytest.fixture
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """A folder and the address it is served at."""
    folder = tmp_path_factory.mktemp("served")
    handler = functools.partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as service:
        thread = threading.Thread(target=service.serve_forever)
        thread.start()
        yield folder, f"http://127.0.0.1:{service.server_port}"
        service.shutdown()
        thread.join()


def failing(label: str, reason: str) -> Source:
    def provide(names, scratch):
        raise Unavailable(reason)

    return Source(label, provide)


def test_files_come_from_the_first_source_that_has_the_right_ones(server, tmp_path: Path, capsys):
    folder, url = server
    (folder / "bad").mkdir()
    (folder / "bad" / "file").write_bytes(CONTENT[:-1])
    (folder / "file").write_bytes(CONTENT)
    target = tmp_path / "data" / "set"
    sources = [failing("a friend", "is away"), web(f"{url}/absent"), web(f"{url}/bad"), web(url)]
    fetch("The set", target, {"file": CHECKSUM}, sources, "cure")
    assert (target / "file").read_bytes() == CONTENT
    assert os.listdir(target) == ["file"]
    said = capsys.readouterr().err
    assert [source.label in said for source in sources] == [True] * 4
    assert "100%" in said  # the bar


def test_the_error_lists_every_source_and_the_cure(server, tmp_path: Path):
    folder, url = server
    (folder / "file").write_bytes(b"something else")
    with pytest.raises(ValueError, match="no source could provide it") as caught:
        fetch(
            "The set",
            tmp_path / "set",
            {"file": CHECKSUM},
            [failing("a friend", "is away"), web(url)],
            "Ask.",
        )
    lines = str(caught.value).splitlines()
    assert lines[0].startswith("The set is not in")
    assert lines[1] == "  - a friend: is away"
    assert "SHA256 checksum" in lines[2]
    assert lines[3] == "Ask."
    assert not (tmp_path / "set").exists()


def test_a_download_is_bounded(server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder, url = server
    (folder / "file").write_bytes(bytes(2**20))
    monkeypatch.setattr(fetching, "MOST_BYTES", 2**19)
    with pytest.raises(Unavailable, match="file: has more than 524288 bytes"):
        web(url).provide(["file"], tmp_path)


def test_a_data_folder_that_cannot_be_written(server, tmp_path: Path):
    folder, url = server
    (folder / "file").write_bytes(CONTENT)
    (tmp_path / "set").write_text("a file where the folder should be")
    with pytest.raises(ValueError, match=r"cannot write the data set to .*choose a writable folder with --data-root"):
        fetch("The set", tmp_path / "set", {"file": CHECKSUM}, [web(url)], "cure")


def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path):
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def chunks() -> Iterator[bytes]:
        yield b"half of the ne"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, chunks())
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]
    write_atomically(path, [b"new"])
    assert path.read_bytes() == b"new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


def test_checksums_of_files_and_of_their_decompressed_content(tmp_path: Path):
    path = tmp_path / "file.gz"
    path.write_bytes(gzip.compress(CONTENT))
    assert read_verified(path, f"gzip {CHECKSUM}") == CONTENT
    whole = hashlib.md5(path.read_bytes()).hexdigest()
    assert read_verified(path, f"md5:{whole}") == path.read_bytes()
    path.write_bytes(gzip.compress(CONTENT + b"!"))
    actual = hashlib.sha256(CONTENT + b"!").hexdigest()
    with pytest.raises(
        ValueError, match=f"file.gz is corrupt: .* should be {CHECKSUM[7:]}, but it is {actual}; delete"
    ):
        read_verified(path, f"gzip {CHECKSUM}")
    path.write_bytes(gzip.compress(CONTENT)[:-40])
    with pytest.raises(ValueError, match=f"should be {CHECKSUM[7:]}, but .* it cannot be decompressed"):
        read_verified(path, f"gzip {CHECKSUM}")


@pytest.mark.parametrize("checksum", [CHECKSUM, f"gzip {CHECKSUM}"])
def test_files_are_bounded_before_they_are_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, checksum: str):
    """A compressed file of 1 MB that holds 1 GB is read up to the bound only."""
    monkeypatch.setattr(fetching, "MOST_BYTES", 2**20)
    path = tmp_path / "file.gz"
    path.write_bytes(gzip.compress(bytes(2**26)) if "gzip" in checksum else bytes(2**20 + 1))
    said = "of its first 1048576 bytes" if "gzip" in checksum else "has 1048577 bytes, where at most 1048576 are"
    with pytest.raises(ValueError, match=said):
        read_verified(path, checksum)


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: os.symlink(path, path)])
def test_what_is_no_file_is_not_waited_for(tmp_path: Path, make):
    make(tmp_path / "file")
    with pytest.raises(ValueError, match=r"file: (is no regular file|cannot be read)"):
        read_verified(tmp_path / "file", CHECKSUM)


# Debian packages


def test_an_installed_package_is_found_in_the_share_directories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    place = tmp_path / "share" / "datasets" / "thing"
    place.mkdir(parents=True)
    (place / "file").touch()
    monkeypatch.setenv("XDG_DATA_DIRS", f"/nonexistent:{tmp_path / 'share'}")
    source = debian.installed("no-such-package-anywhere", "datasets/thing")
    assert source.provide(["file"], tmp_path) == place
    with pytest.raises(Unavailable, match="not installed"):
        source.provide(["other"], tmp_path)


def script(folder: Path, name: str, text: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}")
    path.chmod(0o755)


APT_GET = """
case "$*" in
  *Dir::State::lists=*update*) mkdir -p "$FAKE/updated" ;;
  *Dir::State::lists=*) test -d "$FAKE/updated" || exit 1
    case "$*" in
      *--print-uris*) echo "'http://host/thing.deb' thing.deb 8 SHA256:0" ;;
      *download*) printf 12345678 > thing.deb ;;
    esac ;;
  *) echo "E: Unable to locate package thing" >&2; exit 100 ;;
esac
"""
DPKG_DEB = 'mkdir -p "$3/usr/share/datasets/thing"; cp "$2" "$3/usr/share/datasets/thing/file"\n'


def test_a_package_is_downloaded_with_private_lists_where_the_machine_has_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    programs, scratch = tmp_path / "bin", tmp_path / "scratch"
    programs.mkdir()
    scratch.mkdir()
    script(programs, "apt-get", APT_GET)
    script(programs, "dpkg-deb", DPKG_DEB)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.setenv("FAKE", str(tmp_path))
    place = debian.downloaded("thing", "datasets/thing").provide(["file"], scratch)
    assert (place / "file").read_text() == "12345678"
    with pytest.raises(Unavailable, match="does not hold other"):
        debian.downloaded("thing", "datasets/thing").provide(["other"], scratch)


def test_machines_without_apt_say_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Unavailable, match="apt-get does not exist"):
        debian.downloaded("thing", "datasets/thing").provide(["file"], tmp_path)
    with pytest.raises(Unavailable, match="not installed"):
        debian.installed("thing", "datasets/thing").provide(["file"], tmp_path)
