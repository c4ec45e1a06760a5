"""What the tasks of one run share: the objects the configuration describes, each built once, when first needed."""

import logging
import warnings
from collections.abc import Callable
from functools import cached_property
from typing import Any, TypeVar

import lightning
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from difflens.metrics.judges import FeatureExtractor, Judge, select_classes
from difflens.mitigation.assignment import check_rule
from difflens.mitigation.sae_features import check_mode
from difflens.models.base import DiffusionModel
from difflens.run import Run
from difflens.sae.base import SparseAutoencoder
from difflens.types import Attribute, Site

Result = TypeVar("Result")


class Workbench:
    """The configuration, the run, and the objects built from them."""

    def __init__(self, cfg: DictConfig, run: Run) -> None:
        self.cfg, self.run = cfg, run
        self._made: dict[str, Any] = {}
        for name in ("lightning.pytorch", "lightning.fabric"):
            logging.getLogger(name).setLevel(logging.ERROR)
        warnings.filterwarnings("ignore", module="lightning")
        self._check()

    def _check(self) -> None:
        """Refuse, before any stage begins, what some stage would stumble over later.

        Raises:
            ValueError: with the offending value and the remedy.
        """
        cfg = self.cfg
        if cfg.data.base_seed == cfg.metric.base_seed:
            raise ValueError(
                f"data.base_seed and metric.base_seed are both {cfg.data.base_seed}; "
                "evaluation images must never have been used before: give them different seeds."
            )
        if cfg.data.source not in ("shards", "online"):
            raise ValueError(f"data.source must be shards or online, got {cfg.data.source!r}.")
        for key, least in (("data.images", 2), ("metric.images", 2)):
            if OmegaConf.select(cfg, key) < least:
                raise ValueError(f"{key} must be at least {least}, got {OmegaConf.select(cfg, key)}.")
        check_rule(cfg.mitigation.assignment)
        check_mode(cfg.mitigation.mode, cfg.mitigation.places, cfg.mitigation.protocol)
        self.fixed_strength  # noqa: B018
        self.target  # noqa: B018
        instantiate(cfg.mitigation.window)
        for role in ("labels", "scores"):
            self._judge(role)
        self.new_autoencoder()

    @cached_property
    def fixed_strength(self) -> float | None:
        """The strength the configuration gives, or None where it is to be calibrated."""
        strength = self.cfg.mitigation.strength
        if strength == "auto":
            return None
        try:
            return float(strength)
        except (TypeError, ValueError):
            raise ValueError(f"mitigation.strength must be a number or auto, got {strength!r}.") from None

    def new_autoencoder(self) -> SparseAutoencoder:
        """An untrained SAE of the site's size, as `sae` describes it."""
        described = plain(self.cfg.sae)
        described.pop("training")
        channels, height, width = self.model.site_shape(self.site)
        autoencoder: SparseAutoencoder = instantiate(described, positions=height * width)(channels)
        return autoencoder

    @cached_property
    def model(self) -> DiffusionModel:
        """The model under study."""
        model: DiffusionModel = instantiate(self.cfg.model)
        return model

    @cached_property
    def site(self) -> Site:
        """Where activations are read and edited."""
        site: Site = instantiate(self.cfg.data.site)
        return site

    @cached_property
    def attribute(self) -> Attribute:
        """The bias under study."""
        described = OmegaConf.to_container(self.cfg.attribute, resolve=True)
        return Attribute(described["name"], tuple(described["classes"]))  # type: ignore[index, call-overload]

    @cached_property
    def target(self) -> Tensor:
        """Target distribution q [C]."""
        target = self.cfg.mitigation.target
        return self.attribute.target(None if target is None else dict(target))

    @cached_property
    def labelling_judge(self) -> Judge:
        """Labels the probe's data and calibrates."""
        return self._judge("labels")

    @cached_property
    def scoring_judge(self) -> Judge:
        """Scores the tables; never the one that labelled."""
        judge = self._judge("scores")
        if judge.fingerprint == self.labelling_judge.fingerprint:  # type: ignore[attr-defined]
            raise ValueError("judge.labels and judge.scores are the same network; tables need a second judge.")
        return judge

    def _judge(self, role: str) -> Judge:
        judge: Judge = instantiate(self.cfg.judge[role])
        select_classes(judge, self.attribute)
        return judge

    @cached_property
    def extractor(self) -> FeatureExtractor:
        """The image features of FID and KID."""
        extractor: FeatureExtractor = instantiate(self.cfg.metric.extractor)
        return extractor

    def labels(self, images: Tensor, attribute: Attribute | None = None) -> tuple[Tensor, Tensor]:
        """The class [N] of images (uint8 [N, 3, H, W]) by the labelling judge, and its logits [N, C]."""
        attribute = attribute or self.attribute
        columns = select_classes(self.labelling_judge, attribute)
        logits = self.labelling_judge(images.float() / 255)[attribute.name][:, columns]
        return logits.argmax(-1), logits

    def others(self) -> list[Attribute]:
        """The other attributes that both judges read, on which leakage is measured."""
        known = self.scoring_judge.classes
        return [Attribute(name, tuple(known[name])) for name in self.cfg.judge.others if name != self.attribute.name]

    def once(self, name: str, work: Callable[[], Result]) -> Result:
        """The result of a piece of work that several stages ask for; done, checked and said once per run."""
        if name not in self._made:
            self._made[name] = work()
        result: Result = self._made[name]
        return result

    def trainer(self, **settings: Any) -> lightning.Trainer:
        """A Lightning trainer without logger and checkpoints unless `settings` ask for them."""
        quiet = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False}
        described: Any = OmegaConf.to_container(self.cfg.trainer, resolve=True)
        return lightning.Trainer(**{**quiet, **described, **settings})

    def attribute_spec(self, attribute: Attribute) -> dict[str, Any]:
        """An attribute and the judge that labels it, for artifact specs."""
        return {
            "attribute": {"name": attribute.name, "classes": list(attribute.classes)},
            "judge": self.labelling_judge.fingerprint,  # type: ignore[attr-defined]
        }


def plain(node: Any) -> Any:
    """A configuration node as plain containers, for artifact specs."""
    return OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node
