"""What is asked for: one target distribution for all prompts, or one for each."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from difflens.vocabulary import Attribute


@dataclass(frozen=True)
class Goals:
    """Target distributions q [C] (float64): that of each prompt named in `own`, and `shared` for every other image."""

    shared: Float[Tensor, "classes"]
    own: Mapping[str, Float[Tensor, "classes"]] = field(default_factory=dict)

    def of(self, prompt: str | None) -> Float[Tensor, "classes"]:
        """The target of the images of a prompt, or of a model without prompts."""
        return self.shared if prompt is None else self.own.get(prompt, self.shared)

    def pooled(self, prompts: Sequence[str] | None) -> Float[Tensor, "classes"]:
        """The target of all images together, given the prompt of each: the mean of theirs."""
        if prompts is None or not self.own:
            return self.shared
        return torch.stack([self.of(prompt) for prompt in prompts]).mean(0)


def read_goals(attribute: Attribute, described: Mapping[str, Any] | None, *, prompts: Sequence[str] = ()) -> Goals:
    """The targets that a configuration describes: shares of all images, or prompt → shares.

    Prompts left out of the second form are asked for equal shares; see `Attribute.target` for the shares.

    Raises:
        ValueError: a prompt is none of `prompts`, or shares are not those of a distribution.
    """
    parts = {part.name for part in attribute.parts}
    by_prompt = (
        described and all(isinstance(shares, Mapping) for shares in described.values()) and not parts & {*described}
    )
    if not described or not by_prompt:
        return Goals(attribute.target(described))
    unknown = [name for name in described if name not in prompts]
    if unknown:
        raise ValueError(f"mitigation.target names {unknown}, which are no prompts of the study: {list(prompts)}.")
    return Goals(attribute.target(None), {prompt: attribute.target(shares) for prompt, shares in described.items()})
