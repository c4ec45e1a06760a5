"""`task=separation`: which latents tell drawn images apart that differ in one factor only (METHOD 10.1)."""

import torch
from omegaconf import DictConfig
from torch import Tensor

from difflens.attribution.separation import monosemanticity, paired_auc, separation
from difflens.miniature.faces import FACTORS, render
from difflens.miniature.population import Population
from difflens.models.devices import placed
from difflens.report.figures import draw_separation
from difflens.sae.base import SparseAutoencoder
from difflens.stages.attribution import locate_features
from difflens.store.run import Run
from difflens.study.workbench import Workbench
from difflens.tasks.experiment_files import keep


def separation_task(cfg: DictConfig, run: Run) -> None:
    """Score every latent on exact pairs of every factor, of which the attribute must be one; write the numbers and a plot."""
    bench = Workbench(cfg, run)
    if bench.attribute.name not in FACTORS:
        raise ValueError(f"task=separation draws its pairs: attribute must be one of {list(FACTORS)}.")
    located = locate_features(bench)
    if run.rank:
        return
    with run.stage("separation"):
        scores = torch.stack([factor_separation(bench, located.autoencoder, name) for name in FACTORS])
    own = list(FACTORS).index(bench.attribute.name)
    mono, others = monosemanticity(scores, own), torch.cat([scores[:own], scores[own + 1 :]]).amax(0)
    chosen = torch.zeros(scores.shape[1], dtype=torch.bool)
    chosen[[latent for group in located.features.latents.values() for latent in group]] = True
    data = {
        "attribute": bench.attribute.name,
        "pairs": cfg.task.pairs,
        "own": scores[own].tolist(),
        "other": others.tolist(),
        "chosen": chosen.tolist(),
        "best": _best(scores, own, mono),
        "auc_separation": {name: row.tolist() for name, row in zip(FACTORS, scores, strict=True)},
        "mean_of_chosen": {"own": float(scores[own][chosen].mean()), "monosemanticity": float(mono[chosen].mean())},
        "mean_of_rest": {"own": float(scores[own][~chosen].mean()), "monosemanticity": float(mono[~chosen].mean())},
    }
    for key in ("mean_of_chosen", "mean_of_rest"):
        run.say(f"{key}: separation {data[key]['own']:.3f}, monosemanticity {data[key]['monosemanticity']:.3f}")
    best = data["best"][0]
    run.say(f"best: latent {best['latent']}, separation {best['own']:.3f}, of {best['factor']} {best['other']:.3f}")
    keep(run, "separation", data, draw_separation, (5.2, 4.4))


def factor_separation(bench: Workbench, autoencoder: SparseAutoencoder, factor: str) -> Tensor:
    """How well each latent [M] tells the two most different values of a factor: the largest over its pairs of values."""
    pairs, seed = bench.cfg.task.pairs, bench.cfg.seed
    # The same faces with every value in turn, so that a pair differs in this factor and in nothing else.
    faces = Population().sample(pairs, seed=seed)
    codes = []
    for value in range(len(FACTORS[factor])):
        faces[factor] = torch.full((pairs,), value)
        codes.append(summed_codes(bench, autoencoder, render(faces)))
    scores = [separation(paired_auc(first, second)) for i, first in enumerate(codes) for second in codes[i + 1 :]]
    return torch.stack(scores).amax(0)


def summed_codes(bench: Workbench, autoencoder: SparseAutoencoder, images: Tensor) -> Tensor:
    """Codes [N, M] of images in [0, 1], noised to the steps of `task.steps`, summed over positions and steps."""
    total: list[Tensor] = []
    for part in images.split(bench.model.micro_batch):
        sums: list[Tensor] = []

        # The loss is only the way to the site: activations are read, and go on as they are.
        def keep(h: Tensor, sums: list[Tensor] = sums) -> Tensor:
            sums.append(placed(autoencoder, h.device).codes_of_map(h.float()).sum((-1, -2)))
            return h

        for share in bench.cfg.task.steps:
            step = min(int(share * bench.model.steps), bench.model.steps - 1)
            bench.model.denoising_loss(part, step, site=bench.site, change=keep, seed=bench.cfg.seed)
        total.append(torch.stack(sums).sum(0).cpu())
    return torch.cat(total)


def _best(scores: Tensor, own: int, mono: Tensor) -> list[dict[str, float | str]]:
    """The ten most monosemantic latents, each with the other factor that it tells best."""
    names, rest = list(FACTORS), scores.clone()
    # Below any separation, so that the own factor is never the best of the others.
    rest[own] = -1
    other, which = rest.max(0)
    return [
        {
            "latent": latent,
            "own": float(scores[own, latent]),
            "factor": names[int(which[latent])],
            "other": float(other[latent]),
        }
        for latent in mono.argsort(descending=True)[:10].tolist()
    ]
