"""Where Lightning computes: on the device of the model under study, unless told otherwise."""

import os
from collections.abc import Mapping
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

HARMLESS = ("accelerator", "devices", "num_nodes", "strategy")
"""Arguments of `lightning.Trainer` that say where is computed. Others, such as `limit_train_batches`, would change what
an artifact holds without a trace in its fingerprint, and a later run would reuse it."""


def check_trainer(described: Mapping[str, Any]) -> None:
    """Check that the trainer's settings change no number, and ask for no more processes than there are cores.

    Raises:
        ValueError: one does.
    """
    for name, value in described.items():
        if name not in HARMLESS:
            raise ValueError(
                f"trainer.{name}={value!r} would change numbers that no fingerprint knows of; trainer takes "
                f"{', '.join(HARMLESS)}: leave it out."
            )
    devices, cores = described.get("devices", 1), os.cpu_count() or 1
    on_processor = described.get("accelerator") in (None, "cpu") and not torch.cuda.is_available()
    if isinstance(devices, int) and not isinstance(devices, bool) and on_processor and devices > max(cores, 2):
        raise ValueError(f"trainer.devices={devices} asks for more processes than this machine has cores ({cores}).")


def trainer_settings(cfg: DictConfig, *, alone: bool) -> dict[str, Any]:
    """The configured arguments of `lightning.Trainer`; without `trainer.accelerator` it computes where the model runs.

    Args:
        cfg: the configuration.
        alone: one process on one device, however many are configured.

    Raises:
        ValueError: `model.device` names one of several GPUs and `trainer.devices` asks for more than that.
    """
    described: Any = OmegaConf.to_container(cfg.trainer, resolve=True)
    check_trainer(described)
    if alone:
        described |= {"devices": 1, "strategy": "auto"}
    if described.get("accelerator") is not None:
        return described
    device = torch.device(cfg.model.get("device") or "cpu")
    described["accelerator"] = device.type
    if device.type != "cpu" and device.index is not None:
        if described.get("devices", 1) != 1:
            raise ValueError(
                f"model.device={device} is one device and trainer.devices={described['devices']} asks for others; "
                f"use model.device={device.type}."
            )
        described["devices"] = [device.index]
    return described
