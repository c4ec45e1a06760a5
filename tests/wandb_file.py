"""Reads back what Weights & Biases wrote offline."""

import struct
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wandb.proto.wandb_internal_pb2 import Record


def records(folder: Path) -> dict[str, list[Any]]:
    """What a finished run's offline file holds, by kind; wandb's own process may still be writing the last of it."""
    (path,) = (folder / "wandb").glob("offline-run-*/run-*.wandb")
    deadline = time.monotonic() + 60
    while not (found := _read(path))["exit"] and time.monotonic() < deadline:
        time.sleep(0.1)
    return found


def _read(path: Path) -> dict[str, list[Any]]:
    """The records of a file in LevelDB's log format, after a header of 7 bytes."""
    found, part = defaultdict(list), b""
    for kind, data in _chunks(path.read_bytes()):
        part += data
        if kind in (1, 4):
            record = Record.FromString(part)
            name = record.WhichOneof("record_type")
            found[name].append(getattr(record, name))
            part = b""
    return found


def _chunks(data: bytes) -> Iterator[tuple[int, bytes]]:
    place = 7
    while place + 7 <= len(data):
        if 32768 - place % 32768 < 7:
            place += 32768 - place % 32768
            continue
        _, length, kind = struct.unpack("<IHB", data[place : place + 7])
        if kind == 0:
            return
        yield kind, data[place + 7 : place + 7 + length]
        place += 7 + length


def history(found: dict[str, list[Any]]) -> dict[str, list[str]]:
    """Every logged value as JSON text by name."""
    values = defaultdict(list)
    for row in found["history"]:
        for item in row.item:
            values["/".join(item.nested_key) or item.key].append(item.value_json)
    return values
