"""Redrawing, the control without any edit: an image is replaced by a new draw that shows the class asked for.

The labelling judge reads the finished draws, as it reads finished originals under `mitigation.assignment=oracle`: what this
row reaches, such a quota reaches by itself (METHOD section 6).
"""

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from difflens.data.sampled import as_bytes
from difflens.methods.base import Given, Method, Steering, Window
from difflens.models.base import Batch
from difflens.models.model import DiffusionModel
from difflens.models.sampling import image_generator, normal


class Redraw(Method):
    """Draws again until the labelling judge sees the class. It acts fully or not at all.

    Args:
        draws: so many at most for one image, whose last one is kept whatever it shows.
    """

    dial = False
    at_site = False

    def __init__(self, *, draws: int = 64) -> None:
        self.draws = draws

    def edit(self, given: Given, learnt: Mapping[str, Tensor]) -> "Redrawn":
        """See `Method.edit`."""
        return Redrawn(given, draws=self.draws)


class Redrawn(Steering):
    """Gives images other noise before the call is made."""

    # Images that show their class at once need no further draw.
    before_call = uneven = True

    def __init__(self, given: Given, *, draws: int) -> None:
        super().__init__(given.attribute, window=Window())
        self.classify, self.draws = given.classify, draws

    @contextmanager
    def attach(self, model: DiffusionModel, batch: Batch) -> Iterator[None]:
        """See `Steering.attach`; every draw of an image is a function of its own noise and the draw's number."""
        assert self.classify is not None and batch.generators is not None
        images, wanted = len(batch.latents), batch.images.target
        # A batch knows no ids: an image is told by its noise, so that its redraws do not depend on its neighbours.
        seeds = [noise_digest(row) for row in batch.latents]
        given = batch.latents.clone()
        open_rows, done = (wanted >= 0).nonzero()[:, 0].tolist(), 0
        while open_rows:
            # As many draws of every open image as the micro-batch has room for, the first fitting one of which is taken.
            each = min(max(1, images // len(open_rows)), self.draws - done)
            tried = [(row, done + 1 + number) for number in range(each) for row in open_rows][:images]
            # Full micro-batches: pixels depend on the batch's size, and the judge must see the image that will be made.
            padded = [tried[i % len(tried)] for i in range(images)]
            generators = [image_generator(seeds[row], draw) for row, draw in padded]
            latents = normal(generators, model.latent_shape, device=given.device)
            rows = torch.tensor([row for row, _ in padded], device=given.device)
            candidates = Batch(
                batch.images.take(rows), latents.to(given), batch.texts(rows), generators, batch.settings
            )
            # With 8 bits, as finished images are kept and judged.
            shown = self.classify(as_bytes(model.make(candidates).float().cpu()))
            done += each
            for place, (row, _) in enumerate(tried):
                fits = int(shown[place]) == int(wanted[row])
                if row in open_rows and (fits or done == self.draws):
                    # The generator goes with its noise: with eta > 0 the sampler draws on from it.
                    batch.latents[row], batch.generators[row] = latents[place], generators[place]
                if row in open_rows and fits:
                    open_rows.remove(row)
            if done == self.draws:
                break
        yield


def noise_digest(noise: Tensor) -> int:
    """A number that says which noise an image began with."""
    data = noise.detach().float().cpu().contiguous().numpy().tobytes()
    return int.from_bytes(hashlib.sha256(data).digest()[:4], "big")
