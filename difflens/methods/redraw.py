"""Redrawing, the control without any edit: an image is replaced by a new draw that shows the class asked for.

The labelling judge reads the finished draws, as it reads finished originals under `mitigation.assignment=oracle`: what this
row reaches, such a quota reaches by itself (METHOD section 6).
"""

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

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

    def __init__(self, *, draws: int = 64) -> None:
        self.draws = draws

    def edit(self, given: Given, learnt: Mapping[str, Tensor]) -> "Redrawn":
        """See `Method.edit`."""
        return Redrawn(given, draws=self.draws)


class Redrawn(Steering):
    """Gives images other noise before the call is made.

    Args:
        given: has the attribute and the labelling judge.
        draws: see `Redraw`.
    """

    before_call = True

    def __init__(self, given: Given, *, draws: int) -> None:
        super().__init__(given.attribute, window=Window())
        self.classify, self.draws = given.classify, draws

    @contextmanager
    def attach(self, model: DiffusionModel, batch: Batch) -> Iterator[None]:
        """See `Steering.attach`; every draw of an image is a function of its own noise and the draw's number."""
        assert self.classify is not None and batch.generators is not None
        seeds = [noise_digest(row) for row in batch.latents]
        wanted = batch.images.target
        open_rows = wanted >= 0
        for draw in range(1, self.draws + 1):
            rows = open_rows.nonzero()[:, 0].tolist()
            for row in rows:
                generator = image_generator(seeds[row], draw)
                batch.latents[row] = normal([generator], model.latent_shape, device=batch.latents.device)[0]
                batch.generators[row] = generator
            if not rows or draw == self.draws:
                break
            shown = self.classify(as_bytes(model.make(batch).float().cpu())).to(wanted.device)
            open_rows = open_rows & (shown != wanted)
        yield


def noise_digest(noise: Tensor) -> int:
    """A number that says which noise an image began with."""
    data = noise.detach().float().cpu().contiguous().numpy().tobytes()
    return int.from_bytes(hashlib.sha256(data).digest()[:4], "big")
