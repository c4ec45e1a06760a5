"""Attribute switching: the neutral prompt until a step τ, from there on the one that names the image's class.

Choi et al. 2024 (arXiv 2401.03140), "Fair Sampling in Diffusion Models through Switching Mechanism". There an image starts
under one class's prompt and switches to another's, at a τ found by a transition condition. Here it starts under the neutral
prompt, so that every rule of assignment applies, and the calibration finds the latest τ that suffices.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from difflens.methods.base import Given, Method
from difflens.methods.prompt import PromptEdit, named_prompts, texts_of
from difflens.models.base import Batch
from difflens.models.model import DiffusionModel
from difflens.models.text import TextStates, encode_prompts, exchanged_text


class AttributeSwitching(Method):
    """Strength r in [0, 1] is the share of the steps that are made under the class's prompt: τ = (1 − r) · steps."""

    at_site = False

    def edit(self, given: Given, learnt: Mapping[str, Tensor]) -> "SwitchedPrompt":
        """See `Method.edit`.

        Raises:
            ValueError: the model takes no prompts.
        """
        return SwitchedPrompt(given.attribute, named_prompts(given))


class SwitchedPrompt(PromptEdit):
    """Exchanges the text that the denoiser is given from each image's step on."""

    @contextmanager
    def attach(self, model: DiffusionModel, batch: Batch) -> Iterator[None]:
        """See `Steering.attach`."""
        # Here and not in the hook, which comes by at every step.
        late = encode_prompts(model, texts_of(self.named, batch))
        strength = self.strength_of(batch.images).clamp(0, 1)
        # An image without a class would switch after the last step, which is never.
        switch = torch.where(batch.images.target >= 0, ((1 - strength) * model.steps).round(), model.steps)

        def exchange(step: int, own: TextStates) -> TextStates | None:
            now = step >= switch
            # Nothing is exchanged, so that the images are the plain ones bit for bit.
            if not bool(now.any()):
                return None
            hidden = torch.where(now[:, None, None], late.hidden.to(own.hidden), own.hidden)
            # SDXL's denoiser is given pooled states too, which must name the same class.
            if own.pooled is None or late.pooled is None:
                return TextStates(hidden, own.pooled)
            return TextStates(hidden, torch.where(now[:, None], late.pooled.to(own.pooled), own.pooled))

        with exchanged_text(model, len(batch.images.target), exchange):
            yield
