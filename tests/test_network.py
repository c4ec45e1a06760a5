"""No test reaches out: neither in this process nor in one where the program runs."""

import functools
import socket
from pathlib import Path

import pytest
from network import NetworkAskedError
from program import Program

ELSEWHERE = "198.51.100.1"
"""An address that is kept for documents."""


ask = functools.partial(socket.create_connection, ("huggingface.co", 443))


def test_other_machines_are_refused_and_this_one_is_not() -> None:
    with pytest.raises(NetworkAskedError, match=r"huggingface\.co"):
        ask()
    for family, kind in ((socket.AF_INET, socket.SOCK_STREAM), (socket.AF_INET, socket.SOCK_DGRAM)):
        with socket.socket(family, kind) as asked, pytest.raises(NetworkAskedError, match=ELSEWHERE):
            asked.connect((ELSEWHERE, 443))
    with socket.create_server(("127.0.0.1", 0)) as server:
        socket.create_connection(("localhost", server.getsockname()[1])).close()


def test_so_is_the_program_in_a_process_of_its_own(tmp_path: Path) -> None:
    ended = Program(tmp_path)("task=doctor", prepare=ask)
    assert ended.code == 1 and "NetworkAskedError" in ended.err
