"""What the model of photographs learns from: faces that a published network drew, as latents of an autoencoder."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, LDMPipeline, UNet2DModel
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor, nn

from difflens.judges.protocol import Judge
from difflens.methods.assignment import largest_remainder
from difflens.miniature.diffusion_recipes import Autoencoding, Denoising, encode
from difflens.miniature.photographs import save_sheet
from difflens.models.devices import fast_autocast

SURE = 0.8
"""Probability from which a judge counts as sure of a sample's class."""


SHEET = "generated_faces.webp"
"""Pictures that a model of photographs is compared with, in its folder."""


def resized(faces: UInt8[Tensor, "faces 3 _ _"], size: int) -> UInt8[Tensor, "faces 3 size size"]:
    """Smaller pictures of the same faces, each pixel the mean of what it covers."""
    parts = faces.split(256)
    small = [nn.functional.interpolate(part.float(), size, mode="bilinear", antialias=True) for part in parts]
    return torch.cat([part.round().clamp(0, 255).byte() for part in small])


@dataclass(eq=False)
class PhotoVaeRecipe(Autoencoding):
    """An autoencoder of faces and of their mirror images.

    Args:
        photographs: of `FaceRecipe`; the last `held_out` are kept for the report.
        size: of the pictures, in pixels.
        vae: the constructor's arguments of `AutoencoderKL`.
        kl: see `VaeRecipe`.
        held_out: see `photographs`.
    """

    photographs: UInt8[Tensor, "faces 3 _ _"]
    size: int
    vae: Mapping[str, Any]
    kl: float
    held_out: int
    name: str = "photo_vae"

    @cached_property
    def pictures(self) -> Tensor:
        """The faces at that size."""
        return resized(self.photographs, self.size)

    def images(self, n: int, generator: torch.Generator) -> Tensor:
        """Faces, half of them mirrored."""
        rows = torch.randint(len(self.pictures) - self.held_out, (n,), generator=generator)
        mirrored = torch.rand(n, 1, 1, 1, generator=generator) < 0.5
        images = self.pictures[rows].float() / 127.5 - 1
        return torch.where(mirrored, images.flip(-1), images)

    def unseen(self) -> Tensor:
        """The faces that were kept."""
        return self.pictures[-self.held_out :].float() / 127.5 - 1


@dataclass(eq=False)
class PhotoRecipe(Denoising):
    """Denoising latents of faces whose gender two judges agree on, drawn to known shares, and of their mirror images.

    Args:
        photographs: of `FaceRecipe`.
        size: of the pictures, in pixels.
        shares: class of gender → its share of those trained on.
        labels: a judge; `scores`: another one. Both see the faces as the autoencoder gives them back.
        sure: probability that both judges give the gender of a face that is trained on, or more.
        autoencoder: trained.
        unet: the constructor's arguments of `UNet2DModel`; `scheduler` those of `DDIMScheduler`.
        watched: number of samples a report judges; `watched_steps` their denoising steps.
        reference: number of pictures, as many of each gender, that are kept beside the model for others to compare with.
    """

    photographs: UInt8[Tensor, "faces 3 _ _"]
    size: int
    shares: Mapping[str, float]
    labels: Judge
    scores: Judge
    sure: float
    autoencoder: AutoencoderKL
    unet: Mapping[str, Any]
    scheduler: Mapping[str, Any]
    watched: int
    watched_steps: int
    reference: int
    name: str = "mini_photo"

    @cached_property
    def pictures(self) -> UInt8[Tensor, "faces 3 size size"]:
        """All faces at that size."""
        return resized(self.photographs, self.size)

    @cached_property
    def seen(self) -> tuple[Int[Tensor, "faces"], Bool[Tensor, "faces"]]:
        """What the judges see in the faces as the autoencoder gives them back: their gender, and whether both are sure."""
        decoded = [self.decoded(encode(self.autoencoder, part).float()) for part in self.pictures.split(64)]
        return self.read(torch.cat(decoded), self.sure)

    @cached_property
    def latents(self) -> Tensor:
        """Scaled latents of those trained on, each followed by its mirror image (float16 [pool, C, H, W])."""
        pictures = self.drawn(self.shares)
        pairs = torch.stack([pictures, pictures.flip(-1)], 1).flatten(0, 1)
        parts = [encode(self.autoencoder, part) for part in pairs.split(256)]
        # Asked for in the midst of a step: under its autocast, half precision is refused on a CPU.
        with torch.autocast("cpu", enabled=False):
            return torch.cat(parts)

    def drawn(self, shares: Mapping[str, float], at_most: int | None = None) -> UInt8[Tensor, "faces 3 size size"]:
        """As many pictures as can be had in these shares."""
        return self.pictures[chosen(*self.seen, shares, self.labels.classes["gender"], at_most=at_most)]

    @torch.inference_mode()
    def decoded(self, latents: Float[Tensor, "images _ _ _"]) -> UInt8[Tensor, "images 3 size size"]:
        """The pictures of scaled latents."""
        with fast_autocast():
            images = self.autoencoder.decode(latents / self.autoencoder.config.scaling_factor).sample
        return (127.5 * (images.float() + 1)).round().clamp(0, 255).byte()

    @property
    def pool(self) -> int:  # type: ignore[override]
        """How many are trained on."""
        return len(self.latents)

    def read(
        self, images: UInt8[Tensor, "images 3 _ _"], least: float
    ) -> tuple[Int[Tensor, "images"], Bool[Tensor, "images"]]:
        """The gender that the judge `labels` reads, and whether both give it this probability at `least`."""
        order = self.labels.classes["gender"]
        found = []
        for judge in (self.labels, self.scores):
            answers = torch.cat([judge(part.float() / 255)["gender"] for part in images.split(256)]).softmax(-1)
            found.append(answers[:, [judge.classes["gender"].index(name) for name in order]])
        classes, others = (each.argmax(-1) for each in found)
        sure = torch.stack([each.amax(-1) >= least for each in found]).all(0)
        return classes, sure & (classes == others)

    def build(self) -> nn.Module:
        """A `UNet2DModel` of latents."""
        return UNet2DModel(**self.unet)

    def clean(self, rows: Tensor) -> Tensor:
        """Latents."""
        return self.latents[rows].float()

    def velocity(self, model: nn.Module, noisy: Tensor, t: Tensor, rows: Tensor) -> Tensor:
        """That of the U-Net, which is told nothing else."""
        return model(noisy, t).sample

    @torch.inference_mode()
    def sample(self, model: nn.Module, n: int, *, seed: int) -> UInt8[Tensor, "images 3 size size"]:
        """Plain DDIM samples."""
        shape = self.unet["in_channels"], self.unet["sample_size"], self.unet["sample_size"]
        parts = self.sampled(model, n, shape, steps=self.watched_steps, seed=seed)
        return torch.cat([self.decoded(latents) for latents in parts])

    def report(self, model: nn.Module) -> dict[str, float]:
        """The shares of gender, how far they are off, and of how many samples both judges are sure."""
        classes, sure = self.read(self.sample(model, self.watched, seed=7), SURE)
        names = self.labels.classes["gender"]
        shares = {name: float((classes == index).double().mean()) for index, name in enumerate(names)}
        off = max(abs(shares[name] - share) for name, share in self.shares.items())
        return {"sure": float(sure.double().mean()), "gender_off": off, **shares}

    def export(self, model: nn.Module, folder: Path) -> None:
        """Write an `LDMPipeline`, whose part `vqvae` is the autoencoder, in half precision, and pictures to compare with."""
        # What `LDMPipeline` calls the autoencoder of whatever kind.
        pipeline = LDMPipeline(vqvae=self.autoencoder.half(), unet=model.half(), scheduler=self.schedule)
        pipeline.save_pretrained(folder)
        names = self.labels.classes["gender"]
        save_sheet(self.drawn({name: 1 / len(names) for name in names}, self.reference), folder / SHEET)


def chosen(
    classes: Int[Tensor, "faces"],
    sure: Bool[Tensor, "faces"],
    shares: Mapping[str, float],
    names: tuple[str, ...],
    *,
    at_most: int | None = None,
) -> Int[Tensor, "rows"]:
    """As many faces as can be had of sure classes in these shares, or so many, in their order.

    Raises:
        ValueError: the shares are not those of these classes, or there are no such faces.
    """
    if {*shares} != {*names}:
        raise ValueError(f"task.recipes: shares of gender are those of {', '.join(names)}, got {dict(shares)}.")
    wanted = torch.tensor([shares[name] for name in names], dtype=torch.float64)
    have = torch.stack([(sure & (classes == index)).sum() for index in range(len(names))])
    most = int((have / wanted).amin())
    counts = largest_remainder(wanted, most if at_most is None else min(most, at_most))
    if not counts.all():
        raise ValueError(
            f"task.recipes: {have.tolist()} faces of {', '.join(names)} are sure; raise task.recipes….faces."
        )
    rows = [(sure & (classes == index)).nonzero()[: int(count), 0] for index, count in enumerate(counts)]
    return torch.cat(rows).sort().values
