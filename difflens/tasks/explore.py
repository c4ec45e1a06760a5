"""`task=explore`: browse the located features in a browser, and watch images change under a strength slider."""

import json
import logging
import math
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

from difflens.methods.base import Steering
from difflens.methods.difflens import FeatureEdit, SingleFeature
from difflens.report.page import template_of
from difflens.stages.calibrate import Prepared, prepare
from difflens.stages.cards import draw_cards
from difflens.stages.plans import evaluation_plan
from difflens.store.run import Run
from difflens.study.workbench import Workbench
from difflens.vocabulary import GenerationPlan

log = logging.getLogger(__name__)

OWN_NAMES = ("localhost", "127.0.0.1", "::1")


def explore(cfg: DictConfig, run: Run) -> None:
    """Serve the explorer on `task.port` until Ctrl-C (ValueError: the port cannot be had)."""
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
        # With `task.port=0` only the open server knows its port.
        run.write_json("explorer.json", {"url": f"http://{cfg.task.host}:{server.server_port}/"})
        run.say(f"explore: http://{cfg.task.host}:{server.server_port}/ (Ctrl-C ends it)")
        server.serve_forever()


class Explorer:
    """What the page shows: images of a few seeds, pushed towards a class or with one located feature raised or lowered."""

    def __init__(self, bench: Workbench, prepared: Prepared) -> None:
        self.bench, self.edit = bench, prepared.own
        artifact, self.features = draw_cards(bench, prepared)
        self.folder = None if artifact is None else artifact.folder
        self.plan: GenerationPlan = evaluation_plan(bench).part(0, bench.cfg.task.images)
        # A model of its own batch size: padding to the study's would cost many times the images shown.
        self.model = copy(bench.model)
        self.model.micro_batch = len(self.plan.image_ids)
        self._lock = Lock()
        # On the instance: the cache of a decorated method would keep every explorer alive.
        self.images = lru_cache(maxsize=256)(self._images)
        self.pushed = lru_cache(maxsize=256)(self._pushed)

    def page(self) -> str:
        """The page as HTML."""
        cards = [{**card, "score": f"{card['score']:.3g}"} for card in self.features]
        return template_of("explore").render(
            cards=cards,
            classes=self.bench.attribute.classes,
            method=self.bench.cfg.mitigation.name,
            model=self.bench.cfg.model.name,
            attribute=self.bench.attribute.name,
            largest=self.bench.cfg.task.largest,
        )

    def strip(self, latent: int, kind: str) -> bytes:
        """A card's strip as PNG (KeyError: there is no such card or strip)."""
        if self.folder is None or latent not in self._slots() or kind not in ("top", "effect"):
            raise KeyError(latent)
        return (self.folder / f"{latent}_{kind}.png").read_bytes()

    def _slots(self) -> dict[int, int]:
        if not isinstance(self.edit, FeatureEdit):
            return {}
        shown = {card["latent"] for card in self.features}
        latents: list[int] = self.edit.statistics.latents.tolist()
        return {latent: slot for slot, latent in enumerate(latents) if latent in shown}

    def _images(self, latent: int, strength: float) -> bytes:
        """The images of the shown seeds with one latent moved by `strength` times its usual activity (KeyError: no card)."""
        slot = self._slots()[latent]
        assert isinstance(self.edit, FeatureEdit)
        owner = torch.zeros(len(self.edit.statistics.latents), dtype=torch.int64)
        features = self.edit.features.latents
        owner[slot] = next(i for i, name in enumerate(self.bench.attribute.classes) if latent in features[name])
        return self._draw(SingleFeature(self.edit, owner, strength=strength), target=slot)

    def _pushed(self, name: str, strength: float) -> bytes:
        """The images of the shown seeds pushed towards a class, `strength` away from the method's neutral one."""
        index, neutral = self.bench.attribute.index(name), self.edit.neutral
        table = torch.full((len(self.bench.attribute.classes),), neutral + strength)
        return self._draw(self.edit.with_strength(table), target=index)

    @torch.inference_mode()
    def _draw(self, edit: Steering, *, target: int) -> bytes:
        plan = self.plan.towards(torch.full((len(self.plan.image_ids),), target))
        with self._lock:  # hooks are on one network: one request at a time
            made = [batch.images for batch in self.model.sample(plan, method=edit)]
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
        # Seconds: a connection that says nothing would keep its thread for ever.
        timeout = 60

        def do_GET(self) -> None:
            if not is_own_host(self.headers.get("Host"), self.server.server_address):
                # A page of somebody else could otherwise reach the explorer by a name that it makes point here.
                self.send_error(HTTPStatus.FORBIDDEN, "this address is served under its own name alone")
                return
            try:
                self._answer()
            except ConnectionError as error:
                # Not worth a traceback: pages are closed, and sliders move on, while images are drawn.
                log.debug("the client has left: %s", error)

        def _answer(self) -> None:
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

        # Left to itself the server writes a line to stderr for every request.
        def log_message(self, format: str, *values: Any) -> None:
            log.debug(format, *values)

    return Handler


def is_own_host(named: str | None, address: Any) -> bool:
    """Whether a request's Host header names the server's own address; `address` is (host, port)."""
    host, port = str(address[0]), int(address[1])
    asked = urlsplit(f"//{named or ''}")
    try:
        # `urlsplit` looks at the port only when it is asked for, and raises then.
        right_port = asked.port in (None, port)
    except ValueError:
        return False
    # Open to all addresses, the server cannot know by which name it is reached.
    return bool(asked.hostname) and right_port and (host == "0.0.0.0" or asked.hostname in {*OWN_NAMES, host})


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
    if path not in ("/images.png", "/pushed.png"):
        raise KeyError(path)
    limit, asked_for = float(explorer.bench.cfg.task.largest), float(asked["strength"])
    if not math.isfinite(asked_for):
        raise ValueError(f"strength must be a number, got {asked['strength']!r}.")
    # No farther than the slider goes; rounded, so that nearly equal places are one entry of the cache.
    strength = round(max(-limit, min(limit, asked_for)), 2)
    if path == "/images.png":
        return "image/png", explorer.images(int(asked["latent"]), strength)
    return "image/png", explorer.pushed(asked["class"], strength)
