"""What the tasks of one run share: the objects the configuration describes, each built once, when first needed."""

import logging
import warnings
from collections.abc import Callable
from copy import copy
from dataclasses import asdict, replace
from functools import cached_property
from typing import Any, TypeVar

import lightning
import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from difflens.config import read_strength
from difflens.data.naming import Naming, read_naming
from difflens.data.prompts import PromptSet, fill
from difflens.judges.faces import float_pieces
from difflens.judges.protocol import FeatureExtractor, Judge, faces_found, missing_faces, read_classes, select_classes
from difflens.methods.assignment import Goals, read_goals
from difflens.methods.base import Method
from difflens.models.model import DiffusionModel
from difflens.sae.base import SparseAutoencoder
from difflens.store.progress import progress
from difflens.store.run import Run
from difflens.store.targets import build
from difflens.study.checks import check
from difflens.study.values import blaming, built, class_words, plain, read_attribute
from difflens.training.callbacks import OwnSigterm, StageProgress
from difflens.training.loggers import RunIdentity, Tracker
from difflens.vocabulary import NO_FACE, Attribute, Site

SHARED = ("name", "strength", "times", "assignment", "read", "target", "hold", "calibration")
"""What all methods share: who is moved, how strongly, and what is held."""

Result = TypeVar("Result")


class Workbench:
    """The configuration, the run, and the objects built from them."""

    def __init__(self, cfg: DictConfig, run: Run) -> None:
        self.cfg, self.run = cfg, run
        self._made: dict[str, Any] = {}
        self._answered: tuple[Tensor, dict[str, Tensor]] | None = None
        # Lightning's hints on workers and devices would stand between the lines of the stages.
        for name in ("lightning.pytorch", "lightning.fabric"):
            logging.getLogger(name).setLevel(logging.ERROR)
        warnings.filterwarnings("ignore", module="lightning")
        # Last, since it uses all of this: no stage begins whose successor would be refused.
        check(self)

    @cached_property
    def fixed_strength(self) -> Tensor | None:
        """The strength per class [C] the configuration gives, or None where it is to be calibrated."""
        found = read_strength(plain(self.cfg.mitigation.strength), self.attribute.classes)
        return None if found is None else torch.tensor(found, dtype=torch.float64)

    @property
    def method_settings(self) -> dict[str, Any]:
        """The method's own part of `mitigation`: its class and its constructor's arguments."""
        return {key: value for key, value in plain(self.cfg.mitigation).items() if key not in SHARED}

    @cached_property
    def method(self) -> Method:
        """The method under test: an instance of the class that `mitigation._target_` names, and of no other.

        Raises:
            ValueError: it is no `Method`, the class does not take what the file gives it, or it cannot act towards every
                class at once where that is asked for.
        """
        found: Method = build(self.method_settings, "mitigation")
        if self.cfg.mitigation.assignment == "everyone" and not found.adds_up:
            raise ValueError(
                f"{type(found).__name__} pushes an image towards one class, and mitigation.assignment=everyone gives it "
                "none: use exact."
            )
        return found

    def new_autoencoder(self) -> SparseAutoencoder:
        """An untrained SAE of the site's size, as `sae` describes it."""
        described = {key: value for key, value in plain(self.cfg.sae).items() if key not in ("training", "saved")}
        # A site that does not exist is found here first, and is no fault of the SAE's settings.
        with blaming(f"data.site.module={self.site.module}"):
            channels, height, width = self.model.site_shape(self.site)
        with blaming("sae"):
            return build(described, "sae", positions=height * width)(channels)

    @cached_property
    def model(self) -> DiffusionModel:
        """The model under study."""
        if self.run.rank and torch.cuda.is_available():
            torch.cuda.set_device(self.run.rank % torch.cuda.device_count())  # which "cuda" means from here on
        model: DiffusionModel = built(self.cfg, "model")
        if getattr(model, "safety_checker", None):
            self.run.say(f"{model.name}: its safety checker is switched off; black images would enter every measure")
        return model

    @cached_property
    def site(self) -> Site:
        """Where activations are read and edited; a branch left open is the model's own."""
        site: Site = built(self.cfg, "data.site")
        return replace(site, branch=self.model.default_branch) if site.branch == "none" else site

    @property
    def site_spec(self) -> dict[str, Any]:
        """The site, for artifact specs."""
        return asdict(self.site)

    @cached_property
    def prompts(self) -> PromptSet | None:
        """The prompts of the study, None for an unconditional model.

        Raises:
            ValueError: the model needs prompts and there are none, or the other way round.
        """
        described = self.cfg.get("prompt")
        wanted = self.model.default_branch != "none"
        if wanted and not described:
            raise ValueError(f"{self.model.name} is given prompts: choose a list, such as prompt=workplace.")
        if described and not wanted:
            raise ValueError(f"{self.model.name} takes no prompts: leave prompt out.")
        return built(self.cfg, "prompt") if wanted else None

    @cached_property
    def words(self) -> tuple[str, ...]:
        """How prompts name each class of the attribute (see `class_words`)."""
        return class_words(plain(self.cfg.attribute))

    @cached_property
    def naming(self) -> Naming:
        """The words by which prompts name a class of the attribute."""
        return read_naming(plain(self.cfg.attribute))

    def leaves_alone(self, prompt: str | None) -> bool:
        """Whether no image of a prompt is pushed: it names a class of the attribute, and `prompt.gate` is on."""
        gate = self.prompts is not None and self.prompts.gate
        return gate and prompt is not None and bool(self.naming.named(prompt))

    @cached_property
    def named(self) -> dict[str, int]:
        """Prompt → the class it names, of those that show whether named classes are obeyed; none without prompts."""
        return {} if self.prompts is None else self.prompts.named(self.attribute, self.words)

    @cached_property
    def attribute(self) -> Attribute:
        """The bias under study."""
        return read_attribute(plain(self.cfg.attribute))

    @cached_property
    def goals(self) -> Goals:
        """The target distribution of every prompt, or of all images."""
        target = plain(self.cfg.mitigation.target)
        texts = [] if self.prompts is None else [*self.prompts.studied, *self.prompts.unseen]
        return read_goals(self.attribute, target, prompts=[fill(text) for text in texts])

    @property
    def subject(self) -> Attribute | None:
        """What the prompts are about, None where they do not say or the scoring judge does not know it."""
        name = (self.prompts and self.prompts.subject) or ""
        known = self.scoring_judge.classes
        return Attribute(name, tuple(known[name])) if name in known else None

    @cached_property
    def per_prompt(self) -> tuple[str, ...]:
        """The prompts that are calibrated each by itself; none where all share one calibration."""
        if not self.cfg.mitigation.calibration.per_prompt:
            return ()
        assert self.prompts is not None  # see `config.check_prompts`
        return tuple(fill(text) for text in self.prompts.studied)

    @cached_property
    def labelling_judge(self) -> Judge:
        """Labels the probe's data and calibrates."""
        return self._judge("labels")

    @cached_property
    def scoring_judge(self) -> Judge:
        """Scores the tables; never the one that labelled."""
        judge = self._judge("scores")
        # Edits learn the labelling judge's errors too: it would score them as successes.
        if judge.fingerprint == self.labelling_judge.fingerprint:  # type: ignore[attr-defined]
            raise ValueError("judge.labels and judge.scores are the same network; tables need a second judge.")
        return judge

    def _judge(self, role: str) -> Judge:
        judge: Judge = built(self.cfg, f"judge.{role}")
        for part in self.attribute.components:
            select_classes(judge, part)
        return judge

    @cached_property
    def extractor(self) -> FeatureExtractor:
        """The image features of FID and KID."""
        return built(self.cfg, "metric.extractor")

    @property
    def clip(self) -> Any:
        """The CLIP of the measures."""
        # An extractor with parts has a network of its own for embeddings.
        return getattr(self.extractor, "embeddings", self.extractor)

    def embedded(self, images: Tensor) -> Tensor:
        """CLIP's embeddings [N, E] of images (uint8 [N, 3, H, W])."""
        return torch.cat([self.clip.embed_images(piece).cpu() for piece in float_pieces(images)])

    def labels(self, images: Tensor, attribute: Attribute | None = None) -> tuple[Tensor, Tensor]:
        """The class [N] of images (uint8 [N, 3, H, W]) by the labelling judge, and its logits [N, C].

        An image without a face has the class `NO_FACE` and logits of NaN.
        """
        return self.classified(self.answers(images), attribute or self.attribute)

    def answers(self, images: Tensor) -> dict[str, Tensor]:
        """The labelling judge's logits of every attribute it reads off images (uint8 [N, 3, H, W]).

        Those of the last images are kept: who is to be moved and what is to be held are asked of the same ones in turn.
        """
        # By identity: stages hand on the same tensor, and comparing the pixels of thousands would take its time.
        if self._answered is not None and self._answered[0] is images:
            return self._answered[1]
        answers = read_all(self.labelling_judge, images, "labelling")
        # One attribute tells: an image without a face has a row of NaN in each.
        found = faces_found(answers[self.attribute.components[0].name])
        if missing := missing_faces(found, policy=self.cfg.missing_faces):
            self.run.say(f"no face in {missing} of {len(found)} images that were labelled; they count for no class")
        self._answered = images, answers
        return answers

    def classified(self, answers: dict[str, Tensor], attribute: Attribute) -> tuple[Tensor, Tensor]:
        """Classes and logits of one attribute, as `labels` gives them."""
        return classes_of(self.labelling_judge, attribute, answers)

    def scored(self, images: Tensor) -> Tensor:
        """The class [N] of images (uint8 [N, 3, H, W]) by the judge that labels nothing, `NO_FACE` where there is no face."""
        return classes_of(self.scoring_judge, self.attribute, read_all(self.scoring_judge, images, "scoring"))[0]

    def others(self) -> list[Attribute]:
        """The other attributes that both judges read, on which leakage is measured.

        Raises:
            ValueError: a judge does not read one of them.
        """
        known = self.scoring_judge.classes
        # One judge measures what leaks, the other labels what is held: they must speak of the same attributes.
        read = [name for name in known if name in self.labelling_judge.classes]
        if unknown := [name for name in self.cfg.judge.others if name not in read]:
            raise ValueError(f"judge.others names {unknown}, which the judges do not both read; both read {read}.")
        studied = [part.name for part in self.attribute.components]
        return [Attribute(name, tuple(known[name])) for name in self.cfg.judge.others if name not in studied]

    def held(self) -> list[Attribute]:
        """The other attributes that the mitigation holds where they are; all are measured (see `config.check_held`)."""
        # The list may name the one under study too, so that the same list serves a sweep over attributes.
        return [other for other in self.others() if other.name in self.cfg.mitigation.hold.attributes]

    def sampled(self, *, model: DiffusionModel | None = None, prompts: PromptSet | None = None) -> "Workbench":
        """The same study, with all that was fitted so far, on images of another sampler or of other prompts.

        What is not fitted by then would be fitted on those: ask for it before. Nothing of it goes to the tracker, whose
        figures are the study's own.
        """
        other = copy(self)
        kept = {name: value for name, value in vars(self).items() if name != "per_prompt"}
        changed = {"model": model, "prompts": prompts, "tracker": Tracker()}
        other.__dict__ = kept | {name: value for name, value in changed.items() if value is not None}
        return other

    @cached_property
    def tracker(self) -> Tracker:
        """Where curves and figures go besides the run folder; closed with the run's exit code."""
        return open_tracker(self.cfg, self.run)

    def once(self, name: str, work: Callable[[], Result]) -> Result:
        """The result of a piece of work that several stages ask for; done, checked and said once per run."""
        if name not in self._made:
            self._made[name] = work()
        return self._made[name]

    def trainer(self, stage: str = "", *, alone: bool = False, **settings: Any) -> lightning.Trainer:
        """A Lightning trainer that shows how far the stage is, without logger and checkpoints unless `settings` ask.

        It spreads over the configured devices, all ranks taking part, unless `alone` (see `trainer_settings`).
        """
        # Left to itself Lightning writes logs and checkpoints to where the program was started.
        quiet = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False}
        described = trainer_settings(self.cfg, alone=alone)
        callbacks = [OwnSigterm(), StageProgress(stage), *settings.pop("callbacks", [])]
        return lightning.Trainer(**{**quiet, **described, **settings}, callbacks=callbacks)

    def label_spec(self) -> dict[str, Any]:
        """Where the learning images' labels come from, if there is a choice, for artifact specs."""
        return {} if self.prompts is None else {"labels": self.prompts.labels}

    def attribute_spec(self, attribute: Attribute) -> dict[str, Any]:
        """An attribute and the judge that labels it, for artifact specs."""
        return {
            "attribute": {"name": attribute.name, "classes": list(attribute.classes)},
            "judge": self.labelling_judge.fingerprint,  # type: ignore[attr-defined]
        }


def read_all(judge: Judge, images: Tensor, name: str) -> dict[str, Tensor]:
    """A judge's logits of every attribute it reads off images (uint8 [N, 3, H, W]), a bounded number of them at once."""
    parts = [judge(piece) for piece in progress(float_pieces(images), name)]
    return {attribute: torch.cat([part[attribute] for part in parts]) for attribute in parts[0]}


def classes_of(judge: Judge, attribute: Attribute, answers: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Classes [N], `NO_FACE` where there is no face, and logits [N, C] of one attribute among a judge's answers."""
    logits = read_classes(judge, attribute, answers)
    # The argmax of a row of NaN is a class like any other.
    return torch.where(faces_found(logits), logits.argmax(-1), NO_FACE), logits


def trainer_settings(cfg: DictConfig, *, alone: bool) -> dict[str, Any]:
    """The configured arguments of `lightning.Trainer`; without `trainer.accelerator` it computes where the model runs.

    `alone`: one process on one device, however many are configured.

    Raises:
        ValueError: `model.device` names one of several GPUs and `trainer.devices` asks for more than that.
    """
    described: Any = OmegaConf.to_container(cfg.trainer, resolve=True)
    if alone:
        described |= {"devices": 1, "strategy": "auto"}
    if described.get("accelerator") is not None:
        return described
    device = torch.device(cfg.model.get("device") or "cpu")
    described["accelerator"] = device.type
    if device.type != "cpu" and device.index is not None:
        if described.get("devices", 1) != 1:
            raise ValueError(
                f"model.device={device} is one device and trainer.devices={described['devices']} asks for others; "
                f"use model.device={device.type}."
            )
        # `cuda:1` is the second GPU; one device would be the first.
        described["devices"] = [device.index]
    return described


def open_tracker(cfg: DictConfig, run: Run) -> Tracker:
    """The tracker, closed when the run ends, with its artifacts and its exit code; one that keeps nothing on other ranks.

    Raises:
        ValueError: the logger cannot be had.
    """
    # Each further process would open a run of its own at the service.
    make = None if run.rank else built(cfg, "logger")
    if make is None:
        return Tracker()
    tags = [str(name) for name in (cfg.model.name, cfg.attribute.name, cfg.mitigation.name) if name]
    with blaming("logger"):
        tracker: Tracker = make(run.folder, RunIdentity(cfg.name, run.group, cfg.task.name, tags, plain(cfg), run.id))

    def close(exit_code: int) -> None:
        # Closed in any case: left open, wandb would give this run to the next job of a sweep.
        try:
            tracker.artifacts(run.used)
        finally:
            tracker.close(exit_code)

    run.at_end(close)
    return tracker
