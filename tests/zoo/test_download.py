"""Downloads from a server on this machine: whole, in parts, damaged, refused, and without room."""

import builtins
import errno
import hashlib
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
from collections import namedtuple

import numpy as np
import pytest

from knet.zoo import download
from knet.zoo.download import fetch

CONTENT = np.random.default_rng(0).bytes(3_000_000)
DIGITS = hashlib.sha256(CONTENT).hexdigest()[:8]
NAME = f"/model-{DIGITS}.pth"


@pytest.fixture
def path(cache):
    return cache / NAME[1:]


@pytest.fixture
def get(server, path):
    server.files[NAME] = CONTENT
    return lambda: fetch(server.url + NAME, path, digits=DIGITS)


def part_of(path):
    return path.with_name(f"{path.name}.part")


def leave_part(path, content):
    path.parent.mkdir(parents=True)
    part_of(path).write_bytes(content)


def by_hand(server, path):
    """What every message says of the way without us."""
    return re.escape(f"download {server.url}{NAME} by other means and put it to {path}")


def test_once(get, server, path):
    assert get() == get() == path
    assert path.read_bytes() == CONTENT and server.asked == [(NAME, None)]
    assert not part_of(path).exists()


def test_goes_on_by_itself_after_interruptions(get, server, path, caplog):
    server.cut = [1_000_000, 500_000]
    assert get().read_bytes() == CONTENT
    assert [asked for _, asked in server.asked] == [None, "bytes=1000000-", "bytes=1500000-"]
    assert "cut off after 1.0 MB of 3.0 MB, going on at 1.0 MB" in caplog.text


def test_goes_on_in_the_next_call(get, server, path):
    server.cut = [1_000_000, 0, 0, 0, 0]
    with pytest.raises(OSError, match=rf"cut off.*goes on where it stopped, or "
                       rf"{by_hand(server, path)}"):  # fmt: skip
        get()
    assert part_of(path).read_bytes() == CONTENT[:1_000_000] and not path.exists()
    server.asked.clear()
    assert get().read_bytes() == CONTENT
    assert server.asked == [(NAME, "bytes=1000000-")]


def test_a_part_that_is_whole_needs_no_byte(get, server, path):
    leave_part(path, CONTENT)
    assert get().read_bytes() == CONTENT and len(server.asked) == 1


@pytest.mark.parametrize("part", [b"x" * 1000, b"x" * 4_000_000])
def test_a_part_of_something_else_is_thrown_away(get, path, part):
    leave_part(path, part)
    assert get().read_bytes() == CONTENT


def test_server_without_ranges(get, server, path):
    server.ranges = False
    leave_part(path, CONTENT[:1_000_000])
    assert get().read_bytes() == CONTENT
    assert server.asked == [(NAME, "bytes=1000000-")]


def test_another_file_is_refused(get, server, path):
    server.files[NAME] = b"<html>log in</html>"
    with pytest.raises(ValueError, match=rf"not with {DIGITS}\. Try again, or "
                       rf"{by_hand(server, path)}"):  # fmt: skip
        get()
    assert not path.exists() and not part_of(path).exists()


def test_a_damaged_file_in_the_cache_is_named(get, server, path):
    path.parent.mkdir(parents=True)
    path.write_bytes(CONTENT[:-1] + b"?")
    with pytest.raises(ValueError, match=rf"{re.escape(str(path))}: damaged.*Remove it.*{NAME}"):
        get()
    assert server.asked == []


def test_put_there_by_hand(get, server, path):
    path.parent.mkdir(parents=True)
    path.write_bytes(CONTENT)
    assert get() == path and server.asked == []


def test_not_found(get, server, path):
    server.files.clear()
    with pytest.raises(OSError, match=rf"HTTP 404 Not Found.*{by_hand(server, path)}$"):
        get()
    assert len(server.asked) == 1


def test_no_network(server, path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}{NAME}"
    with pytest.raises(OSError, match=rf"refused.*{re.escape(f'{url} by other means')}"):
        fetch(url, path, digits=DIGITS)


def test_no_room_is_seen_beforehand(get, path, monkeypatch):
    leave_part(path, CONTENT[:1_000_000])
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(9e9, 9e9, 1_900_000))
    with pytest.raises(OSError, match=r"2\.0 MB are to come, 1\.9 MB are free.*KNET_CACHE"):
        get()
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(9e9, 9e9, 2_000_000))
    assert get().read_bytes() == CONTENT


def test_no_room_while_it_comes(get, server, path, monkeypatch):
    class Full:
        """A file on a disk with room for one chunk more."""

        def __init__(self, file):
            self.file = file

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

        def write(self, chunk):
            if self.file.tell():
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self.file.write(chunk)

    def full_open(name, mode="r", *rest, **more):
        file = builtins.open(name, mode, *rest, **more)  # noqa: SIM115
        return Full(file) if mode in ("ab", "wb") else file

    with monkeypatch.context() as full:
        full.setattr(download, "open", full_open, raising=False)
        with pytest.raises(OSError, match=r"part: cannot be written \(No space left.*KNET_CACHE"):
            get()
    there = part_of(path).stat().st_size
    assert 0 < there < len(CONTENT) and len(server.asked) == 1
    assert get().read_bytes() == CONTENT
    assert server.asked[-1] == (NAME, f"bytes={there}-")


def test_cache_that_cannot_be_written(get, server, path):
    path.parent.parent.mkdir(parents=True)
    path.parent.write_text("a file in the folder's place")
    with pytest.raises(OSError, match=r"weights: the cache cannot be written \(.*KNET_CACHE"):
        get()
    assert server.asked == []


@pytest.fixture
def downloading(get, server):
    """Threads that download the same file, which comes when the server's gate is opened."""
    server.gate.clear()
    found = []
    threads = [threading.Thread(target=lambda: found.append(get())) for _ in range(3)]
    for thread in threads:
        thread.start()

    def ends():
        server.gate.set()
        for thread in threads:
            thread.join(20)
        return found

    yield ends
    ends()


def test_threads_download_once(downloading, server, path):
    assert downloading() == [path] * 3
    assert path.read_bytes() == CONTENT and server.asked == [(NAME, None)]


def test_processes_download_once(downloading, server, path):
    # the module alone: the package takes seconds to import
    code = (
        "import logging, sys, pathlib; sys.path.insert(0, sys.argv[4]); import download;"
        "logging.basicConfig(level='INFO', stream=sys.stdout);"
        "download.fetch(sys.argv[1], pathlib.Path(sys.argv[2]), digits=sys.argv[3])"
    )
    folder = os.path.dirname(download.__file__)
    command = [sys.executable, "-c", code, server.url + NAME, str(path), DIGITS, folder]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        assert "another process is downloading it, waiting" in other.stdout.readline()
        assert downloading() == [path] * 3
        assert other.wait(20) == 0
    assert path.read_bytes() == CONTENT and server.asked == [(NAME, None)]


@pytest.mark.parametrize(
    ("variables", "folder"),
    [({"KNET_CACHE": "/a/b"}, "/a/b/weights"), ({"XDG_CACHE_HOME": "/c"}, "/c/knet/weights"),
     ({"HOME": "/d"}, "/d/.cache/knet/weights")],
)  # fmt: skip
def test_where_the_cache_is(monkeypatch, variables, folder):
    for name in ("KNET_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert str(download.weights_folder()) == folder
