"""Unified concept editing: cross-attention weights in closed form, until the prompts' own images show the shares asked for.

Gandikota et al. 2024 (arXiv 2308.14761), "Unified Concept Editing in Diffusion Models", eq. 7 and section 4.3, with the
settings of the released `uce_sd_debias.py`. No image is given a class of its own: the edited model is to show all classes in
the wanted shares, under the studied prompts alone.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from difflens.data.prompts import fill
from difflens.data.sampled import as_bytes
from difflens.methods.base import Given, Method, Steering, Window
from difflens.models.base import Batch
from difflens.models.model import DiffusionModel
from difflens.models.text import encode_prompts
from difflens.vocabulary import UNTOUCHED, Attribute, GenerationPlan, PerImage

FIRST_ID = 2_000_000
"""Images by which the shares are measured get ids that no other image has."""


class UnifiedConceptEditing(Method):
    """Acts fully or not at all.

    Args:
        rounds: of measuring and editing at most; it ends where all shares lie within `within` of what is asked for.
        images: of each prompt that are measured in each round.
        within: see above.
        ridge: λ, the weight of the old weights.
        seed: of the measured images.
    """

    dial: ClassVar[bool] = False
    assigns: ClassVar[bool] = False
    at_site: ClassVar[bool] = False

    def __init__(
        self, *, rounds: int = 30, images: int = 10, within: float = 0.05, ridge: float = 0.5, seed: int = 7007
    ) -> None:
        self.rounds, self.images, self.within, self.ridge, self.seed = rounds, images, within, ridge, seed

    def learn(self, given: Given) -> dict[str, Tensor]:
        """The new weights by the names of their modules, and `rounds` [1], how many it took.

        Raises:
            ValueError: the model takes no prompts, or has no cross-attention.
        """
        if not given.prompts:
            raise ValueError("mitigation=uce edits how prompts act, and the model takes none; choose another one.")
        assert given.model is not None and given.target is not None and given.classify is not None
        model, texts = given.model, [fill(prompt) for prompt in given.prompts]
        old = cross_attention(model.unet)
        concepts, attributes = (last_tokens(model, names) for names in (texts, list(given.words)))
        # v_i begins at W c_i, and wanting what is there changes nothing.
        wanted = {name: concepts @ weight.T for name, weight in old.items()}
        new, taken = dict(old), 0
        for _ in range(self.rounds):
            # Other images in every round (`taken`), or the weights would be fitted to a few faces.
            lacking = given.target.to(concepts) - measured_shares(
                model, texts, new, given, self.images, self.seed + taken
            )
            # A prompt that is near enough wants nothing more, while others still do.
            lacking[(lacking.abs() <= self.within).all(1)] = 0.0
            if not bool(lacking.any()):
                break
            taken += 1
            for name, weight in old.items():
                # The released loop adds to what the rounds before have wanted, which is what makes it converge.
                wanted[name] = wanted[name] + lacking @ (attributes @ weight.T)
                new[name] = edited_weight(weight, concepts, wanted[name], ridge=self.ridge)
        return {**{name: weight.float().contiguous() for name, weight in new.items()}, "rounds": torch.tensor([taken])}

    def edit(self, given: Given, learnt: Mapping[str, Tensor]) -> "EditedWeights":
        """See `Method.edit`."""
        weights = {name: weight for name, weight in learnt.items() if name != "rounds"}
        return EditedWeights(given.attribute, weights)


def cross_attention(unet: nn.Module) -> dict[str, Float[Tensor, "out text"]]:
    """The weights of keys and values of every cross-attention, by the names of their modules.

    Raises:
        ValueError: there is none.
    """
    ends = ("attn2.to_k", "attn2.to_v")
    found = {name: part.weight.detach().float() for name, part in unet.named_modules() if name.endswith(ends)}
    if not found:
        raise ValueError(f"{type(unet).__name__} has no cross-attention; mitigation=uce needs a text-to-image U-Net.")
    return found


def last_tokens(model: DiffusionModel, texts: Sequence[str]) -> Float[Tensor, "texts dim"]:
    """The encoder's state of each text's last token before the one that ends it."""
    tokenizer = model.pipeline.tokenizer
    hidden = encode_prompts(model, texts).hidden.float()
    # A text that is too long is cut, so that its end is the window's.
    ends = [min(len(tokenizer(text).input_ids), tokenizer.model_max_length) - 2 for text in texts]
    return hidden[torch.arange(len(texts)), torch.tensor(ends)]


def edited_weight(
    weight: Float[Tensor, "out text"],
    concepts: Float[Tensor, "concepts text"],
    wanted: Float[Tensor, "concepts out"],
    *,
    ridge: float,
) -> Float[Tensor, "out text"]:
    """W′ = (λ W + Σ v_i c_iᵀ)(λ I + Σ c_i c_iᵀ)⁻¹, the least-squares solution (eq. 7), in float64.

    Args:
        weight: W.
        concepts: c_i.
        wanted: v_i.
        ridge: λ.
    """
    c, v = concepts.double(), wanted.double()
    left = ridge * weight.double() + v.T @ c
    right = ridge * torch.eye(c.shape[1], dtype=torch.float64, device=c.device) + c.T @ c
    # Solved, not inverted: X R = L is R Xᵀ = Lᵀ, since R is symmetric.
    return torch.linalg.solve(right, left.T).T.to(weight.dtype)


def measured_shares(
    model: DiffusionModel, texts: Sequence[str], weights: Mapping[str, Tensor], given: Given, images: int, seed: int
) -> Float[Tensor, "texts classes"]:
    """The shares of each class that the labelling judge sees in a few images of each prompt under these weights."""
    assert given.classify is not None
    classes, shares = len(given.attribute.classes), []
    edit = EditedWeights(given.attribute, weights)
    for number, text in enumerate(texts):
        ids = torch.arange(images) + FIRST_ID + number * images
        # Whichever class: the edit asks only whether an image has one.
        plan = GenerationPlan(seed, ids, torch.zeros(images, dtype=torch.int64), (text,) * images)
        made = torch.cat([as_bytes(batch.images) for batch in model.sample(plan, method=edit)])
        labels = given.classify(made)
        counts = torch.bincount(labels[labels >= 0], minlength=classes).float()
        shares.append(counts / counts.sum().clamp_min(1))
    return torch.stack(shares).to(model.device)


class EditedWeights(Steering):
    """Other weights of some linear layers (module → its weight), for the images that have a class."""

    def __init__(self, attribute: Attribute, weights: Mapping[str, Tensor]) -> None:
        super().__init__(attribute, window=Window())
        self.weights = dict(weights)

    @contextmanager
    def attach(self, model: DiffusionModel, batch: Batch) -> Iterator[None]:
        """See `Steering.attach`."""
        with ExitStack() as stack:
            for name, weight in self.weights.items():
                # A hook and no assignment: some rows keep the old weights, and nothing need be put back.
                handle = model.unet.get_submodule(name).register_forward_hook(_other_weight(weight, batch.images))
                stack.callback(handle.remove)
            yield


def _other_weight(weight: Tensor, images: PerImage) -> Any:
    touched = images.target != UNTOUCHED

    def hook(module: nn.Linear, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        (x,) = args[:1]
        # Rows are the images once for every branch of guidance.
        rows = touched.to(x.device).repeat(len(x) // len(touched))
        other = nn.functional.linear(x, weight.to(x), module.bias)
        return torch.where(rows.view(-1, *[1] * (output.ndim - 1)), other, output)

    return hook
