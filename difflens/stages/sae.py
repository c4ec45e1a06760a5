"""`task=sae`: train a sparse autoencoder on the stored activations, and report its health."""

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from omegaconf import DictConfig
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from difflens.data.activations import ActivationStore, split_by_image
from difflens.data.mixing import (
    OnlineTokens,
    StoredTokens,
    TokenBatch,
    Tokenise,
    TokenSource,
    buffer_sizes,
    mixed_batches,
)
from difflens.models.devices import placed
from difflens.models.model import DiffusionModel
from difflens.sae.base import SparseAutoencoder, load_sae, read_spec, save_sae
from difflens.sae.health import DENSITY_EDGES, HealthMeter, SaeHealth, denoising_loss_recovered
from difflens.stages.activations import collect
from difflens.stages.plans import learning_plan
from difflens.stages.tracked import track_sae
from difflens.store.artifacts import Artifact, require_equal
from difflens.store.errors import UserError
from difflens.store.progress import progress
from difflens.store.run import Run
from difflens.study.values import built, plain
from difflens.study.workbench import Workbench
from difflens.training.callbacks import HealthOverTraining
from difflens.training.sae_module import SaeModule

ONLINE_FIRST_ID = 1_000_000
"""Images sampled for online training get ids that no stored image has."""

HEALTH_IMAGES = 8
"""Held-out images on which the SAE's health is followed while it trains."""


def sae(cfg: DictConfig, run: Run) -> None:
    """Run the stage alone."""
    train(Workbench(cfg, run))


def train(bench: Workbench) -> tuple[Artifact, SparseAutoencoder]:
    """The trained SAE on raw activations; goes on from the last checkpoint of an interrupted run."""
    return bench.once("sae", lambda: _train(bench))


def _train(bench: Workbench) -> tuple[Artifact, SparseAutoencoder]:
    given = given_sae(bench)
    activations, store = collect(bench)
    spec = {
        "activations": activations.fingerprint,
        "source": bench.cfg.data.source,
        "buffer": bench.cfg.data.buffer,
        "validation": bench.cfg.data.validation,
        "sae": plain(bench.cfg.sae),
        "seed": bench.cfg.seed,
    }
    # By the hash of its weights: a path may hold another file later, and settings of no training decide nothing.
    if given is not None:
        spec["sae"] = {"saved": given[1]}

    def make(folder: Path) -> None:
        # By image, never by token: neighbours in one map would be on both sides (METHOD section 1).
        training, validation = split_by_image(len(store), bench.cfg.data.validation, seed=bench.cfg.seed)
        saved, workspace = folder / "autoencoder", folder / "training"
        # An interrupted run may have left a trained SAE without its health; that is no reason to train again.
        if not _is_saved(saved):
            found = _fit(bench, store, training, validation, workspace=workspace) if given is None else given[0]
            if not bench.run.rank:
                save_sae(found, saved, spec={"made_from": spec, "trained_on": trained_on(bench.model, bench.site_spec)})
        # Only training is shared out; one rank measures the health.
        if bench.run.rank:
            return
        # From its file, so that what is measured is what later stages read.
        trained = load_sae(saved)
        health = measure_health(trained, store, validation)
        recovered = loss_recovered(bench, trained, store, validation)
        report = {**asdict(health), "density_edges": list(DENSITY_EDGES), **recovered}
        (folder / "health.json").write_text(json.dumps(report))
        # Checkpoints hold the weights and Adam's two moments: three times the SAE itself.
        shutil.rmtree(workspace, ignore_errors=True)

    with bench.run.stage("sae"):
        artifact = bench.run.artifact("sae", spec, make, resumable=True, together=given is None)
        track_sae(bench, json.loads((artifact.folder / "health.json").read_text()))
        return artifact, load_sae(artifact.folder / "autoencoder")


def trained_on(model: DiffusionModel, site: Mapping[str, Any]) -> dict[str, Any]:
    """Where an SAE reads: the model, its sampler and the site."""
    # A name decides nothing, and the micro-batch no more than rounding.
    return {"model": {k: v for k, v in model.spec().items() if k not in ("name", "micro_batch")}, "site": dict(site)}


def given_sae(bench: Workbench) -> tuple[SparseAutoencoder, str] | None:
    """The SAE in the folder `sae.saved` and the SHA-256 of its weights, None where one is to be trained.

    Raises:
        ValueError: there is none, or it was trained on another model, sampler or site.
    """
    if bench.cfg.sae.saved is None:
        return None
    folder = Path(bench.cfg.sae.saved).expanduser()
    autoencoder = load_sae(folder)
    described = read_spec(folder)
    require_equal(described.get("trained_on", {}), trained_on(bench.model, bench.site_spec), f"the SAE in {folder}")
    return autoencoder, described["autoencoder"]["sha256"]


def _is_saved(folder: Path) -> bool:
    """Whether an interrupted run got as far as a whole SAE; what is left of half of one is removed."""
    try:
        load_sae(folder)
    except UserError:
        raise  # a class that is not let in is no damage
    except ValueError:
        shutil.rmtree(folder, ignore_errors=True)
        return False
    return True


class _Stream(IterableDataset[TokenBatch]):
    """The mixed token batches from update `first` on: a function of the source and the seed, so that a resume is exact."""

    def __init__(self, source: TokenSource, *, batch: int, batches: int, capacity: int, seed: int, first: int) -> None:
        self.source, self.first = source, first
        self.settings: dict[str, int] = {"batch": batch, "batches": batches, "capacity": capacity, "seed": seed}

    def __iter__(self) -> Iterator[TokenBatch]:
        # A checkpoint knows neither the generator nor the place in the stream: it is drawn again up to there.
        return islice(mixed_batches(self.source, **self.settings), self.first, None)


def _fit(
    bench: Workbench, store: ActivationStore, training: Sequence[int], validation: Sequence[int], *, workspace: Path
) -> SparseAutoencoder:
    # The SAE's first directions come from torch's global generator.
    torch.manual_seed(bench.cfg.seed)
    module: SaeModule = built(bench.cfg, "sae.training")(
        bench.new_autoencoder(), steps=store.steps, site=bench.site.module
    )
    tokenise = module.sae.tokens_of_map
    source = _token_source(bench, store, training, tokenise)
    batch = int(module.hparams["batch"])
    sizes = buffer_sizes(bench.cfg.data.buffer, batch=batch, dim=module.sae.dim)
    bench.run.say(f"sae: {sizes.describe()}")
    stream = {"batch": batch, "batches": module.updates, "seed": bench.cfg.seed, "capacity": sizes.capacity}
    # Mixed like the training's own tokens: mean and scale of one step or a few images would be others.
    sample = next(mixed_batches(source, **{**stream, "batch": sizes.sample, "batches": 1}))
    module.calibrate_input(sample.tokens, sample.steps)
    # Raw neurons learn the mean of the activations, and that is known by now.
    if not module.sae.trains:
        return module.fold_scale().eval()
    checkpoint = workspace / "last.ckpt"
    first = updates_done(checkpoint)
    # A kill costs a twentieth of the training at most, and never more than 500 updates.
    interval = max(1, min(500, module.updates // 20))
    # With the counter Lightning would write `last-v1.ckpt` beside an older one, and a resume would read the older.
    keeper = ModelCheckpoint(workspace, filename="last", every_n_train_steps=interval, enable_version_counter=False)
    loader = DataLoader(_Stream(source, **stream, first=first), batch_size=None)
    # Tokens of a few held-out images at every step, and the step of each.
    maps = [tokenise(store.at_step(step)[validation[:HEALTH_IMAGES]]) for step in range(store.steps)]
    steps = torch.arange(store.steps).repeat_interleave(len(maps[0]))
    health = HealthOverTraining(torch.cat(maps), steps, bench.tracker)
    trainer = bench.trainer(
        "SAE's training",
        max_epochs=1,
        max_steps=module.updates,
        callbacks=[keeper, health],
        enable_checkpointing=True,
        logger=bench.tracker.logger,
        log_every_n_steps=20,
    )
    # `weights_only`: a checkpoint is a pickle, which could run anything.
    trainer.fit(module, loader, ckpt_path=str(checkpoint) if first else None, weights_only=True)
    return module.fold_scale().eval()


def _token_source(bench: Workbench, store: ActivationStore, training: Sequence[int], tokenise: Tokenise) -> TokenSource:
    if bench.cfg.data.source == "shards":
        return StoredTokens(store, list(training), tokenise=tokenise)
    return OnlineTokens(
        bench.model,
        bench.site,
        base_seed=bench.cfg.data.base_seed,
        first_id=ONLINE_FIRST_ID,
        prompts=learning_plan(bench).prompts,
        tokenise=tokenise,
    )


def updates_done(checkpoint: Path) -> int:
    """After how many updates a checkpoint was written; 0 where there is none, or one that cannot be read."""
    try:
        # A kill may leave half a checkpoint: the training then begins anew.
        return int(torch.load(checkpoint, map_location="cpu", weights_only=True)["global_step"])
    except (OSError, EOFError, KeyError, RuntimeError, UnpicklingError):
        return 0


@torch.inference_mode()
def measure_health(autoencoder: SparseAutoencoder, store: ActivationStore, rows: Sequence[int]) -> SaeHealth:
    """FVU, L0, dead share and density on images that never trained the SAE."""
    meter = HealthMeter(store.steps, autoencoder.dim, autoencoder.width)
    for step in progress(range(store.steps), "SAE's health"):
        tokens = autoencoder.tokens_of_map(store.at_step(step)[list(rows)].float())
        for chunk in torch.split(tokens, 4096):
            codes = autoencoder.encode(chunk)
            meter.update(chunk, autoencoder.decode(codes), codes, torch.full((len(chunk),), step))
    return meter.compute()


def loss_recovered(
    bench: Workbench, autoencoder: SparseAutoencoder, store: ActivationStore, positions: Sequence[int]
) -> dict[str, list[float]]:
    """Denoising loss recovered per step on held-out images, and its interval; the ablation puts in the site's mean."""
    rows = list(positions)[: bench.model.micro_batch // 2]
    images, prompts = store.images[rows].float() / 255, learning_plan(bench).take(torch.tensor(rows)).prompts
    losses = torch.zeros(3, store.steps, len(rows), dtype=torch.float64)

    def reconstruct(h: Tensor) -> Tensor:
        return placed(autoencoder, h.device).reconstruct_map(h)

    for step in progress(range(store.steps), "denoising loss recovered"):
        mean = store.at_step(step).float().mean(0)
        for row, change in enumerate((None, reconstruct, lambda h, mean=mean: mean.to(h).expand_as(h))):
            # One seed for all three, so that they differ by the change alone.
            losses[row, step] = bench.model.denoising_loss(
                images, step, site=bench.site, change=change, seed=bench.cfg.seed, prompts=prompts
            )
    original, reconstructed, ablated = losses
    found = denoising_loss_recovered(original=original, reconstructed=reconstructed, ablated=ablated)
    named = {"": found.value, "_low": found.low, "_high": found.high}
    return {f"loss_recovered{end}_per_step": values.tolist() for end, values in named.items()}
