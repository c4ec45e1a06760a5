"""The tests have no network: whatever in a process asks for another machine is refused."""

import ipaddress
import socket
import sys
from typing import Any

OWN_NAMES = ("", "localhost", socket.gethostname())
NAMED, ADDRESSED = ("socket.getaddrinfo", "socket.gethostbyname"), ("socket.connect", "socket.sendto")
"""Audit events that hold a name first, and those that hold an address behind the socket."""


class NetworkAskedError(BaseException):
    """No `Exception`, so that a library which tries, fails and goes on cannot hide it."""


def refuse_network() -> None:
    """From now on this process reaches its own machine alone; for the rest of its life, whatever is patched in it."""
    sys.addaudithook(_refuse)


def _refuse(event: str, arguments: tuple[Any, ...]) -> None:
    if event in NAMED:
        host = arguments[0]
    elif event in ADDRESSED and isinstance(arguments[1], tuple):
        host = arguments[1][0]
    else:
        return
    if not _own(host.decode() if isinstance(host, bytes) else host):
        raise NetworkAskedError(f"{event} of {host!r}: tests work from local files, or say in one line what they lack")


def _own(host: Any) -> bool:
    if not isinstance(host, str) or host in OWN_NAMES:
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return address.is_loopback or address.is_unspecified
