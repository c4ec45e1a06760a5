"""Self-discovering: one map per class, added to the activations and trained to explain its images under a neutral prompt.

Li et al. 2024 (arXiv 2311.17216), "Self-Discovering Interpretable Diffusion Latent Directions for Responsible Text-to-Image
Generation", eq. 4, with the settings of the released code: Adam at 0.1, batches of 8, 2,500 updates. There images are made by
prompts such as "a woman" and explained under "a person"; here by the study's prompts naming the class, under the same prompts
without it, at the timesteps that are sampled at, one for each batch. A model without prompts explains those of its images
that the labelling judge sees in the class.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from difflens.data.prompts import fill
from difflens.data.sampled import as_bytes
from difflens.methods.base import Given, Method, Window, check_update, class_counts
from difflens.methods.h_direction import DirectionEdit
from difflens.models.hooks import SiteHooks
from difflens.models.model import DiffusionModel
from difflens.models.sampling import add_noise, encode_images, squared_error
from difflens.models.text import encode_prompts
from difflens.store.progress import progress
from difflens.vocabulary import GenerationPlan

FIRST_ID = 5_000_000
"""Images that are explained get ids that no other image has."""
MAPS = "maps"


class SelfDiscovering(Method):
    """h′ = h + r m_c, the same map m_c at every step; the released code adds it once (r = 1).

    Args:
        images: of each class that are explained; without prompts so many times the classes are drawn and sorted.
        updates: of each map.
        batch: images of an update.
        lr: of Adam.
        seed: of images, timesteps and noise.
        update: `symmetric` as released, or `asymmetric`.
        window: the edited steps.
    """

    def __init__(
        self,
        *,
        images: int = 256,
        updates: int = 2500,
        batch: int = 8,
        lr: float = 0.1,
        seed: int = 6007,
        update: str = "symmetric",
        window: Window | None = None,
    ) -> None:
        check_update(update)
        self.images, self.updates, self.batch, self.lr, self.seed = images, updates, batch, lr, seed
        self.update, self.window = update, window or Window()

    def learn(self, given: Given) -> dict[str, Tensor]:
        """One map for each class [classes, 1, D, H, W].

        Raises:
            ValueError: no image shows a class.
        """
        clean, prompts, labels = self._explained(given)
        class_counts(given.attribute, labels, key="mitigation.images")
        maps = []
        for index, name in enumerate(given.attribute.classes):
            rows = (labels == index).nonzero()[:, 0]
            texts = None if prompts is None else [prompts[row] for row in rows.tolist()]
            maps.append(self._trained(given, clean[rows], texts, title=f"map of {name}"))
        return {MAPS: torch.stack(maps)[:, None]}

    def edit(self, given: Given, learnt: Mapping[str, Tensor]) -> DirectionEdit:
        """See `Method.edit`."""
        # A view: the same map at every step is held once.
        maps = learnt[MAPS].expand(-1, given.steps, -1, -1, -1)
        return DirectionEdit(given.attribute, maps, site=given.site, update=self.update, window=self.window)

    def _explained(self, given: Given) -> tuple[Tensor, list[str] | None, Tensor]:
        """Clean latents [N, C, H, W] of images, the neutral prompt of each, and the class of each [N]."""
        assert given.model is not None and given.classify is not None
        model, classes = given.model, len(given.attribute.classes)
        count = self.images * classes
        labels, neutral, named = torch.arange(count) % classes, None, None
        if given.prompts:
            chosen = [given.prompts[i // classes % len(given.prompts)] for i in range(count)]
            neutral = [fill(prompt) for prompt in chosen]
            named = tuple(fill(prompt, given.words[i % classes]) for i, prompt in enumerate(chosen))
        plan = GenerationPlan(self.seed, torch.arange(count) + FIRST_ID, None, named)
        made = torch.cat([as_bytes(batch.images) for batch in model.sample(plan)])
        if not given.prompts:
            labels = given.classify(made)
        pictures = made.float() / 255
        if not model.prompted:
            # A model on pixels denoises the images themselves, in [−1, 1].
            return pictures * 2 - 1, neutral, labels
        parts = [encode_images(model.pipeline.vae, part).cpu() for part in pictures.split(model.micro_batch)]
        return torch.cat(parts), neutral, labels

    def _trained(self, given: Given, clean: Tensor, prompts: list[str] | None, *, title: str) -> Float[Tensor, "d h w"]:
        """The map under which the denoiser explains these images best."""
        assert given.model is not None
        model = given.model
        # On the CPU, so that every device learns from the same draws.
        generator = torch.Generator().manual_seed(self.seed)
        # Each distinct prompt is encoded once, not in every update.
        texts = None if prompts is None else dict.fromkeys(prompts)
        hidden = None if texts is None else encode_prompts(model, list(texts)).hidden
        number = {} if texts is None else {text: row for row, text in enumerate(texts)}
        found = torch.zeros(model.site_shape(given.site), device=model.device, requires_grad=True)
        optimiser = torch.optim.Adam([found], lr=self.lr)
        for _ in progress(range(self.updates), title):
            rows = torch.randint(len(clean), (self.batch,), generator=generator)
            # One for the whole batch: hooks of a site refuse rows at several timesteps.
            timestep = int(model.timesteps[int(torch.randint(model.steps, (1,), generator=generator))])
            noise = torch.randn(self.batch, *clean.shape[1:], generator=generator).to(model.device)
            noisy = add_noise(model.pipeline.scheduler, clean[rows].to(model.device), noise, timestep)
            condition = {}
            if hidden is not None and prompts is not None:
                which = torch.tensor([number[prompts[row]] for row in rows.tolist()])
                condition = {"encoder_hidden_states": hidden[which]}
            loss = explained(model, given, noisy, noise, timestep, found, condition)
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
        return found.detach().float().cpu()


def explained(
    model: DiffusionModel,
    given: Given,
    noisy: Tensor,
    noise: Tensor,
    timestep: int,
    found: Float[Tensor, "d h w"],
    condition: Mapping[str, Tensor],
) -> Float[Tensor, ""]:
    """The denoiser's mean squared error on the noise with a map added to the activations of every image."""
    with (
        torch.enable_grad(),
        SiteHooks(model.unet, given.site, timesteps=model.timesteps, change=lambda h, _: h + found.to(h.dtype)),
    ):
        output = model.unet(noisy, timestep, **condition, return_dict=False)[0]
    return squared_error(model.pipeline.scheduler, output, timestep, noisy=noisy, noise=noise).mean()
