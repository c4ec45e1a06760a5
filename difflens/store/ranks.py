"""The processes of a distributed run, and where there may be none."""

import io
import os
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, redirect_stdout
from pathlib import Path
from typing import Any

from difflens.store.errors import UserError

TRACEBACK = "traceback.txt"


def process_rank() -> int:
    """This process's rank in a distributed run, 0 if there is none; only rank 0 writes the run folder."""
    return next((int(os.environ[name]) for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID") if name in os.environ), 0)


@contextmanager
def quiet_rank(rank: int) -> Iterator[None]:
    """Let only the first rank of a distributed run speak on stdout."""
    with redirect_stdout(io.StringIO()) if rank else nullcontext():
        yield


def rank_prefix(rank: int) -> str:
    """What a line of another process than the first begins with."""
    return f"rank {rank}: " if rank else ""


def first_to_fail(folder: Path, error: BaseException) -> bool:
    """Whether no other process of the run in `folder` has failed before this one; its traceback is kept there then.

    The others fail in consequence, as their connection breaks.
    """
    try:
        with (folder / TRACEBACK).open("x", encoding="utf-8") as file:
            file.write("".join(traceback.format_exception(error)))
    except FileExistsError:
        return False
    except OSError:
        # On a full disk or in a folder that is gone the error to tell is the first one.
        pass
    return True


def refuse_distributed_sweep(config: Mapping[str, Any]) -> None:
    """Check that no job of a sweep asks for several devices, unless SLURM has started a process for each of them.

    Raises:
        UserError: one does: each rank would start the whole sweep again.
    """
    devices = (config.get("trainer") or {}).get("devices")
    count = len(devices) if isinstance(devices, list) else devices
    if isinstance(count, int) and count > 1 and int(os.environ.get("SLURM_NTASKS", 1)) != count:
        raise UserError(
            f"trainer.devices={devices} does not work in a sweep (-m): every rank would restart the sweep; set "
            "trainer.devices=1, or run the jobs one after the other without -m (they share what they have in common), or "
            f"on a cluster use hydra/launcher=slurm_gpu hydra.launcher.tasks_per_node={count}."
        )
