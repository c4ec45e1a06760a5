"""The attribution sweep as a LightningModule: every step's scores, averaged over images of each class."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import lightning
import torch
from jaxtyping import Float, Int
from torch import Tensor

from difflens.attribution.heads import AffineHead, AutogradHead, Head
from difflens.attribution.scorers import Scorer
from difflens.probes.base import Probe
from difflens.sae.base import SparseAutoencoder
from difflens.vocabulary import Attribute, FeatureScores


class LabelledMaps(NamedTuple):
    """Maps [n, D, H, W] recorded at one step, its class per image [n], the maps scores start from (None: zero codes)."""

    maps: Tensor
    labels: Int[Tensor, "images"]
    step: int
    baseline: Tensor | None = None


class AttributionModule(lightning.LightningModule):
    """Sums scores, activations and completeness over batches (maps [n, D, H, W], labels [n], step).

    `Trainer.predict` runs it, spread over ranks; sums are over images, so the result does not depend on how they are
    batched. An item is all batches of one step: no two ranks add to the same score.
    """

    score_sum: Tensor
    activation_sum: Tensor
    images: Tensor
    gap: Tensor

    def __init__(
        self, sae: SparseAutoencoder, probe: Probe, attribute: Attribute, scorer: Scorer, *, temperature: float = 1.0
    ) -> None:
        super().__init__()
        self.temperature = temperature
        self.sae, self.probe, self.attribute, self.scorer = sae, probe, attribute, scorer
        shape = (len(attribute.classes), probe.steps, sae.width)
        # Buffers follow the module to its device; not persistent, since they are results and no weights. In double, so
        # that it does not matter how images were batched.
        for name, size in {"score_sum": shape, "activation_sum": shape, "images": shape[:2], "gap": (2,)}.items():
            self.register_buffer(name, torch.zeros(size, dtype=torch.float64), persistent=False)
        self._last: tuple[tuple[int, torch.Size], Head] | None = None

    def head(self, step: int, positions: torch.Size) -> Head:
        """Probe after decoder at one step, its logits divided by the temperature.

        `positions` are those of the codes: the map's height and width, or 1 × 1 where a whole map is one token. Batches
        come step by step, so the last head is kept.
        """
        if self._last is not None and self._last[0] == (step, positions):
            return self._last[1]
        decoder, layer = (self.sae.decoder.detach(), self.sae.b_dec.detach()), self.probe.affine_layer(step)
        head: Head
        if layer is None:
            head = AutogradHead(*decoder, lambda maps: self.probe(maps, step) / self.temperature, tuple(positions))
        else:
            # Both divided: so are the logits, and the head stays affine.
            weight, bias = (values / self.temperature for values in layer)
            head = AffineHead(*decoder, weight.reshape(-1, self.sae.dim, *positions), bias)
        self._last = (step, positions), head
        return head

    def predict_step(self, batches: Iterable[LabelledMaps], batch_idx: int) -> None:
        """Add the batches of one step to the sums."""
        for batch in batches:
            self._add(batch)

    def on_predict_end(self) -> None:
        """Add up what the ranks have summed, each over the steps it was given."""
        for sums in (self.score_sum, self.activation_sum, self.images, self.gap):
            sums.copy_(self.trainer.strategy.reduce(sums, reduce_op="sum"))

    def _add(self, batch: LabelledMaps) -> None:
        maps, labels, step, start = batch
        codes = self.sae.codes_of_map(maps.float())
        baseline = None if start is None else self.sae.codes_of_map(start.float())
        head = self.head(step, codes.shape[2:])
        scores = self.scorer(head, codes, labels, baseline).detach()
        with torch.no_grad():
            first = head.zero_logits().expand(len(maps), -1) if baseline is None else head.logits(baseline)
            # In double: a gap as small as rounding is what a complete scorer shows.
            ends = (logits.double().softmax(-1) for logits in (head.logits(codes), first))
            p, p_first = (shares.gather(1, labels[:, None])[:, 0] for shares in ends)
            # Sum and count in one tensor, which ranks can add up.
            self.gap += torch.stack([(scores.double().sum(1) - (p - p_first)).abs().sum(), torch.ones_like(p).sum()])
        own = torch.nn.functional.one_hot(labels, len(self.attribute.classes)).double().T
        self.score_sum[:, step] += own @ scores.double()
        self.activation_sum[:, step] += own @ codes.sum((-1, -2)).double()
        self.images[:, step] += own.sum(1)

    def result(self) -> "AttributionResult":
        """The averages over images (ValueError: a class had no image)."""
        if (self.images == 0).any():
            empty = [name for name, n in zip(self.attribute.classes, self.images.amin(1), strict=True) if n == 0]
            raise ValueError(f"no image is judged {empty} ({self.attribute.name}); collect more activations.")
        count = self.images[:, :, None]
        return AttributionResult(
            FeatureScores(self.attribute, (self.score_sum / count).float()),
            (self.activation_sum / count).float(),
            float(self.gap[0] / self.gap[1]),
        )


@dataclass(frozen=True)
class AttributionResult:
    """What a sweep found.

    Attributes:
        scores: mean score per class, step and latent.
        activation: mean summed activation per image [classes, steps, M].
        completeness_gap: mean |Σ_i score_i − (F_c(z) − F_c(baseline))|; zero for integrated gradients.
    """

    scores: FeatureScores
    activation: Float[Tensor, "classes steps latents"]
    completeness_gap: float
