"""Semantic guidance: the noise estimate is moved along what a concept's text changes in it, where it changes it most.

Brack et al. 2023 (arXiv 2301.12247), "SEGA: Instructing Text-to-Image Models using Semantic Guidance", eqs. 4 to 9, with the
settings of Friedrich et al. 2023 (arXiv 2302.10893), "Fair Diffusion": the class asked for is added, the others are taken
away. Concepts are `female person`, `old person`, and so on; each costs the denoiser one row more per image and step.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from difflens.methods.base import Given, Method, Steering, Window
from difflens.methods.prompt import named_prompts
from difflens.models.base import Batch
from difflens.models.model import DiffusionModel
from difflens.models.sampling import scheduler_of
from difflens.models.text import TextStates, encode_prompts
from difflens.vocabulary import Attribute


class SemanticGuidance(Method):
    """The strength is the guidance scale s of every concept; 4 in Fair Diffusion.

    Args:
        warmup: share of the steps before the guidance acts, while its momentum is built up; published as 10 of 50.
        threshold: quantile below which, channel by channel, a concept's change is left out.
        momentum: share of the momentum that is added.
        beta: how much of the momentum is kept at a step.
    """

    at_site = False

    def __init__(
        self, *, warmup: float = 0.2, threshold: float = 0.95, momentum: float = 0.3, beta: float = 0.6
    ) -> None:
        for name, value in (("warmup", warmup), ("threshold", threshold), ("beta", beta)):
            if not 0 <= value < 1:
                raise ValueError(f"mitigation.{name} must lie in [0, 1), got {value}.")
        self.warmup, self.threshold, self.momentum, self.beta = warmup, threshold, momentum, beta

    def edit(self, given: Given, learnt: Mapping[str, Tensor]) -> "GuidedByConcepts":
        """See `Method.edit`.

        Raises:
            ValueError: the model takes no prompts.
        """
        # Called for its refusal of models without prompts.
        named_prompts(given)
        return GuidedByConcepts(given.attribute, [f"{word} person" for word in given.words], self)


class GuidedByConcepts(Steering):
    """Adds semantic guidance to the estimate that the scheduler is given; `concepts` are the text of each class [C]."""

    before_call = True

    def __init__(self, attribute: Attribute, concepts: list[str], settings: SemanticGuidance) -> None:
        super().__init__(attribute, window=Window())
        self.concepts, self.settings = concepts, settings

    @contextmanager
    def attach(self, model: DiffusionModel, batch: Batch) -> Iterator[None]:
        """See `Steering.attach`.

        Raises:
            ValueError: the model samples without guidance, or in more than one call of its denoiser per step.
        """
        if model.guidance.calls != ("both",):
            raise ValueError("mitigation=sega needs both branches of guidance in one call: set model.guidance above 1.")
        scheduler = _Guiding(model, self, batch)
        # A hook beside the scheduler, which is given both branches combined and not the unconditional one.
        handle = model.unet.register_forward_hook(scheduler.keep)
        try:
            with scheduler_of(model.pipeline, scheduler):
                yield
        finally:
            handle.remove()


class _Guiding:
    """The pipeline's scheduler, whose step is given the guided estimate."""

    def __init__(self, model: DiffusionModel, edit: GuidedByConcepts, batch: Batch) -> None:
        self._model, self._scheduler, self._settings = model, model.pipeline.scheduler, edit.settings
        self._texts = encode_prompts(model, edit.concepts)
        self._target, self._strength = batch.images.target, edit.strength_of(batch.images)
        self._momentum: Tensor | None = None
        self._uncond: Tensor | None = None
        self._own_call = False
        self._step, self._first = 0, round(edit.settings.warmup * model.steps)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._scheduler, name)

    def keep(self, _: Any, __: Any, output: Any) -> None:
        """Take the unconditional estimate of the pipeline's own call."""
        # The concepts' own calls come by here too. Of the pipeline's rows the unconditional ones are first.
        if not self._own_call:
            tensor = output[0] if isinstance(output, tuple) else output.sample
            self._uncond = tensor[: len(self._target)]

    def step(self, model_output: Tensor, timestep: Any, sample: Tensor, *args: Any, **more: Any) -> Any:
        """See `DDIMScheduler.step`; images without a class keep their estimate bit for bit."""
        assert self._uncond is not None
        shown = self._scheduler.scale_model_input(sample, timestep)
        concepts = torch.stack([self._estimate(shown, timestep, index) for index in range(len(self._texts.hidden))])
        # During the warm-up as well, which is there to build up the momentum.
        edit, self._momentum = semantic_guidance(
            concepts,
            self._uncond,
            self._target,
            self._strength.to(concepts),
            self._momentum,
            self._settings,
        )
        moved = (self._target >= 0) & (self._strength != 0) & (self._step >= self._first)
        self._step += 1
        guided = torch.where(moved[:, None, None, None], model_output + edit, model_output)
        return self._scheduler.step(guided, timestep, sample, *args, **more)

    def _estimate(self, shown: Tensor, timestep: Any, concept: int) -> Tensor:
        rows = torch.full((len(shown),), concept, device=self._texts.hidden.device)
        texts: TextStates = self._texts.take(rows)
        self._own_call = True
        try:
            estimate: Tensor = self._model.unet(
                shown, timestep, encoder_hidden_states=texts.hidden.to(shown), return_dict=False
            )[0]
        finally:
            self._own_call = False
        return estimate


def semantic_guidance(
    concepts: Float[Tensor, "classes images channels height width"],
    uncond: Float[Tensor, "images channels height width"],
    target: Int[Tensor, "images"],
    strength: Float[Tensor, "images"],
    momentum: Float[Tensor, "images channels height width"] | None,
    settings: SemanticGuidance,
) -> tuple[Float[Tensor, "images channels height width"], Float[Tensor, "images channels height width"]]:
    """What is added to the guided estimate at one step once the warm-up is over, and the momentum after it.

    SEGA, eqs. 4 to 9; as in the released code, the concepts' changes are summed.

    Args:
        concepts: estimates ε(x, concept) of every class.
        uncond: ε(x, ∅).
        target: class of each image.
        strength: guidance scale of each image.
        momentum: after the step before, None at the first.
        settings: threshold and momentum.
    """
    momentum = torch.zeros_like(uncond) if momentum is None else momentum
    towards = torch.nn.functional.one_hot(target.clamp_min(0), len(concepts)).T.to(concepts) * 2 - 1
    change = (strength * towards)[:, :, None, None, None] * (concepts - uncond)
    # A limit for each channel; `quantile` takes no half precision.
    limit = change.abs().float().flatten(3).quantile(settings.threshold, dim=3).to(change)
    kept = torch.where(change.abs() >= limit[..., None, None], change, 0.0)
    edit = kept.sum(0) + settings.momentum * momentum
    return edit, settings.beta * momentum + (1 - settings.beta) * edit
