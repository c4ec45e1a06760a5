"""A lock is held by one living process: the dead are taken over, the living and the unknown are waited for."""

import json
import logging
import os
import socket
import subprocess
import sys
import threading
import time

from difflens.store.locks import SECONDS_OF_SILENCE, SECONDS_TO_SIGN, exclusive, process_start


def test_the_lock_of_a_dead_process_is_taken_over(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    lock = tmp_path / "x.lock"
    for owner in (
        {"pid": dead.pid, "host": socket.gethostname(), "started": "1"},
        {"pid": os.getpid(), "host": socket.gethostname(), "started": "another start: the number was given again"},
    ):
        lock.write_text(json.dumps(owner))
        with exclusive(lock, "sae", poll_seconds=0.01):
            assert json.loads(lock.read_text())["pid"] == os.getpid()
        assert not lock.exists()
    assert "is gone" in caplog.text


def test_a_living_owner_or_one_on_another_host_is_waited_for(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    lock = tmp_path / "x.lock"
    mine = {"pid": os.getpid(), "host": socket.gethostname(), "started": process_start(os.getpid())}
    for owner in (mine, {"pid": 1, "host": "elsewhere", "started": "1"}):
        lock.write_text(json.dumps(owner))
        entered = threading.Event()

        def enter(entered: threading.Event = entered) -> None:
            with exclusive(lock, "sae 0123", poll_seconds=0.01):
                entered.set()

        thread = threading.Thread(target=enter)
        thread.start()
        said, deadline = f"waiting for process {owner['pid']} on {owner['host']}", time.monotonic() + 30
        while said not in caplog.text and time.monotonic() < deadline:
            time.sleep(0.01)
        assert f"{said}, which is making sae 0123" in caplog.text and not entered.wait(0.15)
        lock.unlink()
        thread.join(30)
        assert entered.is_set() and not lock.exists()


def test_a_silent_owner_on_another_host_is_taken_over_and_a_living_one_gives_signs(tmp_path, monkeypatch):
    lock = tmp_path / "x.lock"
    lock.write_text(json.dumps({"pid": 1, "host": "elsewhere", "started": "1"}))
    past = time.time() - SECONDS_OF_SILENCE - 1
    os.utime(lock, (past, past))
    monkeypatch.setattr("difflens.store.locks.SECONDS_BETWEEN_SIGNS", 0.01)
    with exclusive(lock, "sae", poll_seconds=0.01):
        os.utime(lock, (past, past))
        deadline = time.monotonic() + 5
        while lock.stat().st_mtime < past + 1 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert lock.stat().st_mtime > past + 1


def test_a_lock_that_was_never_signed_is_taken_over_after_a_while(tmp_path):
    lock = tmp_path / "x.lock"
    lock.touch()
    past = time.time() - SECONDS_TO_SIGN - 1
    os.utime(lock, (past, past))
    with exclusive(lock, "sae", poll_seconds=0.01):
        assert json.loads(lock.read_text())["pid"] == os.getpid()
