"""Where Lightning computes: on the device of the model under study, unless told otherwise."""

from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf


def trainer_settings(cfg: DictConfig, *, alone: bool) -> dict[str, Any]:
    """The configured arguments of `lightning.Trainer`; without `trainer.accelerator` it computes where the model runs.

    Args:
        cfg: the configuration.
        alone: one process on one device, however many are configured.

    Raises:
        ValueError: `model.device` names one of several GPUs and `trainer.devices` asks for more than that.
    """
    described: Any = OmegaConf.to_container(cfg.trainer, resolve=True)
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
