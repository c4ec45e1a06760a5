"""The processes of a distributed run, and where there may be none."""

import os
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from difflens.store.errors import UserError

TRACEBACK = "traceback.txt"

RANKS = {"RANK": "WORLD_SIZE", "LOCAL_RANK": "WORLD_SIZE", "SLURM_PROCID": "SLURM_NTASKS"}
"""What tells a process its rank (torchrun, Lightning, srun), and what tells it how many there are."""


def process_rank() -> int:
    """This process's rank in a distributed run, 0 if there is none; only rank 0 writes the run folder."""
    # Anything but a number is left for `check_launch` to refuse in words.
    return next((int(os.environ[name]) for name in RANKS if os.environ.get(name, "").isdecimal()), 0)


def device_count(config: Mapping[str, Any]) -> int | None:
    """How many processes the configuration asks for; None where it leaves that to Lightning."""
    trainer = config.get("trainer") or {}
    devices = trainer.get("devices", 1)
    count = len(devices) if isinstance(devices, list) else devices
    return count * (trainer.get("num_nodes") or 1) if isinstance(count, int) and count > 0 else None


def check_launch(config: Mapping[str, Any], *, sweep: bool = False) -> None:
    """Check that a rank in the environment belongs to a launch of as many processes as the configuration asks for.

    Raises:
        UserError: a scheduler, or another program, has left it behind: this one would wait for processes that nobody starts.
            Or a job of a sweep asks for several: each of them would start the whole sweep again.
    """
    count, tasks = device_count(config), os.environ.get("SLURM_NTASKS", "1")
    if sweep and (count or 1) > 1 and tasks != str(count):
        raise UserError(
            f"trainer.devices={config['trainer']['devices']} does not work in a sweep (-m): every rank would restart the "
            "sweep; set trainer.devices=1, or run the jobs one after the other without -m (they share what they have in "
            f"common), or on a cluster use hydra/launcher=slurm_gpu hydra.launcher.tasks_per_node={count}."
        )
    if count == 1 and process_rank() == 0:
        # Lightning takes the tasks of an allocation for processes of its own.
        os.environ.pop("SLURM_NTASKS", None)
    if all(_launched(name, count) for name in RANKS if name in os.environ):
        return
    found = {name: os.environ[name] for name in (*RANKS, "WORLD_SIZE", "SLURM_NTASKS") if name in os.environ}
    said = " ".join(f"{name}={value}" for name, value in found.items())
    unset = " ".join(f"-u {name}" for name in found)
    raise UserError(
        f"the environment says {said}, but trainer.devices={count} is no launch of that many processes; take that away "
        f"(env {unset} difflens …), or set trainer.devices to the number of processes that are started."
    )


def _launched(name: str, count: int | None) -> bool:
    rank, total = os.environ[name], os.environ.get(RANKS[name])
    # A single task of SLURM may start further processes by itself; alone with rank 0 there is nobody to wait for.
    alone = rank == "0" and (count == 1 or (name == "SLURM_PROCID" and total in (None, "1")))
    return alone or (rank.isdecimal() and total is not None and total == str(count or total) and int(rank) < int(total))


def rank_prefix(rank: int) -> str:
    """What a line of another process than the first begins with."""
    return f"rank {rank}: " if rank else ""


def first_to_fail(folder: Path, error: BaseException) -> bool:
    """Whether no other process of the run in `folder` has failed before this one; its traceback is kept there then.

    The others fail in consequence, as their connection breaks.
    """
    try:
        # Exclusive creation decides between processes which one was first.
        with (folder / TRACEBACK).open("x", encoding="utf-8") as file:
            file.write("".join(traceback.format_exception(error)))
    except FileExistsError:
        return False
    except OSError:
        # On a full disk or in a folder that is gone the error to tell is the first one.
        pass
    return True
