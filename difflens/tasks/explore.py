"""`task=explore`: browse the located features in a browser, and watch images change under a strength slider."""

import json
import logging
from copy import copy
from functools import lru_cache
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from threading import Lock
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
import torch
from omegaconf import DictConfig
from PIL import Image
from torch import Tensor

from difflens.methods.single_feature import SingleFeature
from difflens.report.page import template_of
from difflens.stages.calibrate import Prepared, prepare
from difflens.stages.cards import draw_cards
from difflens.stages.edits import feature_edit
from difflens.stages.plans import evaluation_plan
from difflens.store.run import Run
from difflens.study.workbench import Workbench
from difflens.vocabulary import GenerationPlan

log = logging.getLogger(__name__)


def explore(cfg: DictConfig, run: Run) -> None:
    """Serve the explorer on `task.port` until Ctrl-C.

    Raises:
        ValueError: the port cannot be had.
    """
    bench = Workbench(cfg, run)
    prepared = prepare(bench)
    if run.rank:
        return
    explorer = Explorer(bench, prepared)
    try:
        server = ThreadingHTTPServer((cfg.task.host, cfg.task.port), handler_of(explorer))
    except OSError as error:
        raise ValueError(f"task.port={cfg.task.port} cannot be used ({error.strerror}); choose another one.") from error
    with server:
        run.write_json("explorer.json", {"url": f"http://{cfg.task.host}:{server.server_port}/"})
        run.say(f"explore: http://{cfg.task.host}:{server.server_port}/ (Ctrl-C ends it)")
        server.serve_forever()


class Explorer:
    """What the page shows: cards of the located features, and images of a few seeds with one of them raised or lowered."""

    def __init__(self, bench: Workbench, prepared: Prepared) -> None:
        self.bench, self.mitigation = bench, feature_edit(bench, prepared.located)
        artifact, self.features = draw_cards(bench, prepared)
        self.folder = artifact.folder
        self.plan: GenerationPlan = evaluation_plan(bench).part(0, bench.cfg.task.images)
        # A model of its own batch size: padding to the study's would cost many times the images shown.
        self.model = copy(bench.model)
        self.model.micro_batch = len(self.plan.image_ids)
        self._lock = Lock()
        self.images = lru_cache(maxsize=256)(self._images)

    def page(self) -> str:
        """The page as HTML."""
        cards = [{**card, "score": f"{card['score']:.3g}"} for card in self.features]
        limit = self.bench.cfg.task.largest
        return template_of("explore").render(
            cards=cards, model=self.bench.cfg.model.name, attribute=self.bench.attribute.name, largest=limit
        )

    def strip(self, latent: int, kind: str) -> bytes:
        """A card's strip as PNG.

        Raises:
            KeyError: there is no such card or strip.
        """
        if latent not in self._slots() or kind not in ("top", "effect"):
            raise KeyError(latent)
        return (self.folder / f"{latent}_{kind}.png").read_bytes()

    def _slots(self) -> dict[int, int]:
        shown = {card["latent"] for card in self.features}
        latents: list[int] = self.mitigation.statistics.latents.tolist()
        return {latent: slot for slot, latent in enumerate(latents) if latent in shown}

    @torch.inference_mode()
    def _images(self, latent: int, strength: float) -> bytes:
        """The images of the shown seeds with one latent moved by `strength` times its usual activity, side by side, as PNG.

        Raises:
            KeyError: there is no such card.
        """
        slot = self._slots()[latent]
        owner = torch.zeros(len(self.mitigation.statistics.latents), dtype=torch.int64)
        owner[slot] = next(
            index
            for index, name in enumerate(self.bench.attribute.classes)
            if latent in self.mitigation.features.latents[name]
        )
        edit = SingleFeature(self.mitigation, owner, strength=strength)
        plan = self.plan.towards(torch.full((len(self.plan.image_ids),), slot))
        with self._lock:  # hooks are on one network: one request at a time
            made = [batch.images for batch in self.model.sample(plan, edit=edit)]
        return png(torch.cat(made))


def png(images: Tensor) -> bytes:
    """Images [N, 3, H, W] in [0, 1] side by side as a PNG file."""
    row = np.asarray((images * 255).round().byte().permute(2, 0, 3, 1).flatten(1, 2))
    stream = BytesIO()
    Image.fromarray(row).save(stream, format="PNG")
    return stream.getvalue()


def handler_of(explorer: Explorer) -> type[BaseHTTPRequestHandler]:
    """A request handler that serves one explorer."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            address = urlsplit(self.path)
            asked = {key: values[0] for key, values in parse_qs(address.query).items()}
            try:
                kind, body = answer(explorer, address.path, asked)
            except (KeyError, ValueError):
                self.send_error(HTTPStatus.NOT_FOUND)
                return
            self.send_response(HTTPStatus.OK)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *values: Any) -> None:
            log.debug(format, *values)

    return Handler


def answer(explorer: Explorer, path: str, asked: dict[str, str]) -> tuple[str, bytes]:
    """The content type and body of a request.

    Raises:
        KeyError, ValueError: there is nothing at the path, or the query is not one.
    """
    if path == "/":
        return "text/html; charset=utf-8", explorer.page().encode()
    if path == "/features.json":
        return "application/json", json.dumps(explorer.features).encode()
    if path == "/strip.png":
        return "image/png", explorer.strip(int(asked["latent"]), asked["kind"])
    if path == "/images.png":
        limit = float(explorer.bench.cfg.task.largest)
        strength = round(max(-limit, min(limit, float(asked["strength"]))), 2)
        return "image/png", explorer.images(int(asked["latent"]), strength)
    raise KeyError(path)
