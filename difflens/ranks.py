"""The processes of a distributed run, and where there may be none."""

import os
from collections.abc import Mapping
from typing import Any

from difflens.errors import UserError


def process_rank() -> int:
    """This process's rank in a distributed run, 0 if there is none; only rank 0 writes the run folder."""
    return next((int(os.environ[name]) for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID") if name in os.environ), 0)


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
