"""A lock is held by one living process, whatever became of the one before and whatever its file says."""

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from difflens.store.errors import ArtifactError
from difflens.store.locks import exclusive, is_gone, read_owner, this_process

HOLDER = """
import sys, time
from pathlib import Path
from difflens.store.locks import exclusive
with exclusive(Path(sys.argv[1]), "sae"):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_others_wait_for_a_living_process_saying_for_whom_and_go_on_once_it_is_killed(tmp_path, caplog, number):
    caplog.set_level(logging.INFO)
    path = tmp_path / "locks" / "x.lock"
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(path)], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        entered = threading.Event()

        def enter() -> None:
            with exclusive(path, "sae 0123", poll_seconds=0.01):
                assert read_owner(path) == this_process()
                entered.set()

        thread = threading.Thread(target=enter)
        thread.start()
        assert not entered.wait(0.3)
        assert read_owner(path) == {**this_process(), "pid": holder.pid}
        assert f"waiting for process {holder.pid} on {this_process()['host']}, which is making sae 0123" in caplog.text
        holder.send_signal(number)
        thread.join(30)
        assert entered.is_set() and read_owner(path) is None
    assert is_gone({**this_process(), "pid": holder.pid}) and not is_gone(this_process())
    assert not is_gone({"pid": holder.pid, "host": "elsewhere"})


@pytest.mark.parametrize(
    "content", [b"", b"null", b'{"pid": "seven"}', b"seven\nhere\n", b"\xff\xfe\x00", b"x" * 10**6]
)
def test_what_a_damaged_lock_file_says_does_not_matter(tmp_path, content):
    path = tmp_path / "x.lock"
    path.write_bytes(content)
    assert read_owner(path) is None
    with exclusive(path, "sae"):
        assert read_owner(path) == this_process()


@pytest.mark.parametrize("put", [Path.mkdir, lambda path: path.symlink_to("nowhere")])
def test_what_is_no_file_is_refused_in_one_line(tmp_path, put):
    path = tmp_path / "x.lock"
    put(path)
    with pytest.raises(ArtifactError, match=r"x\.lock is no lock file; remove it"), exclusive(path, "sae"):
        pytest.fail("the block must not run")


def test_without_flock_the_dead_of_this_host_are_taken_over(tmp_path, monkeypatch, caplog):
    """As on a file system that does not know it."""

    def unknown(*_: object) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", unknown)
    path = tmp_path / "x.lock"
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    path.write_text(f"{dead.pid}\n{this_process()['host']}\n")
    with pytest.warns(UserWarning, match="flock not supported"), exclusive(path, "sae", poll_seconds=0.01):
        assert read_owner(path) == this_process()
    assert not path.exists()


def test_an_interrupted_holder_leaves_the_lock_free(tmp_path):
    path = tmp_path / "x.lock"
    with pytest.raises(KeyboardInterrupt), exclusive(path, "sae"):
        raise KeyboardInterrupt
    begun = time.monotonic()
    with exclusive(path, "sae"):
        assert time.monotonic() - begun < 1 and os.path.getsize(path)
