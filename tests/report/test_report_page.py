"""The page of a synthetic run: complete, self-contained, tolerant of gaps, and never trusting text."""

import json
import re
import shutil
import subprocess
import sys
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sweep_folder import run_metrics

from difflens.report import write_report
from difflens.report.page import SECTIONS

STEPS = 10
KEYS = [section.key for section in SECTIONS if section.key not in ("folders", "compare", "transfer")]


def feature(latent: int, name: str, rank: int) -> dict[str, Any]:
    steps = np.linspace(0, 1, STEPS)
    paths = {part: f"images/features/{latent}_{part}.png" for part in ("top", "effect")}
    score = {"score": 0.1234 / rank, "score_per_step": (steps * (1 - steps) / rank).tolist()}
    activation = {"female": steps.tolist(), "male": (steps / 3).tolist()}
    shift = {"activation_per_step": activation, "effect_shift": {"female": 0.3, "male": -0.3}}
    return {"latent": latent, "class": name, "rank": rank, **score, **shift, **paths}


def report() -> dict[str, Any]:
    points = [
        {"strength": {"female": s, "male": 1.5}, "success": {"female": s / 3}, "shares": {"female": s / 6}}
        for s in (1.5, 3.0, 2.25, 1.875)
    ]
    sae = {"width": 1024, "k": 32, "dim": 128, "fvu": 0.0812, "l0": 31.9, "dead_share": 0.01}
    curves = {"fvu_per_step": [0.2, *[0.08] * (STEPS - 2), None], "loss_recovered_per_step": [0.9] * STEPS}
    density = {"edges": [-6 + i for i in range(7)], "counts": [1, 5, 80, 300, 500, 20]}
    return {
        "dose": {"neutral": 1.0, "chosen": {"female": 2.25, "male": 1.0}, "met": {"female": True}, "points": points},
        "sae": {**sae, **curves, "density": density},
        "probe": {"accuracy_per_step": np.linspace(0.5, 0.97, STEPS).tolist(), "chance": 0.5, "images_per_class": 300},
        "attribution": {"method": "integrated_gradients", "completeness_gap": 1e-6},
        "features": [feature(17, "female", 1), feature(40, "male", 1)],
    }


MANIFEST = {
    "command": ["/somewhere/bin/difflens", "attribute=gender", "name=two words"],
    "git": {"commit": "0123abcd", "dirty": True},
    "versions": {"difflens": "0.1.0", "torch": "2.15.0", "wandb": None},
    "seconds": {"activations": 51.2, "sae": 200.5},
    "peak_memory_mib": 1800.4,
    "artifacts": [{"kind": "sae", "fingerprint": "feedc0de", "reused": False}],
}


def make_run(folder: Path) -> Path:
    """A run folder as the tasks write it, with random pixels."""
    random = np.random.default_rng(0)
    names = {f"{method}/{i}": (32, 32, 3) for i in range(40) for method in ("original", "difflens")}
    names |= {f"features/{latent}_{part}": (64, 256, 3) for latent in (17, 40) for part in ("top", "effect")}
    for name, size in names.items():
        path = folder / "images" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, size, dtype=np.uint8)).save(path)
    edited = [{"id": i, "from": "male", "to": "female"} for i in (3, 7, 30)]
    status = {"status": "done", "seconds": 300.0}
    data = {
        "metrics": run_metrics(),
        "report": report(),
        "manifest": MANIFEST,
        "status": status,
        "images/edited": edited,
    }
    for name, content in data.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    (folder / "config.yaml").write_text("seed: 2002\nmodel:\n  name: mini_ddpm\n")
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(make_run(tmp_path_factory.mktemp("run"))).parent


@pytest.fixture
def run_folder(made: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return shutil.copytree(made, tmp_path / "run")


def bodies(page: Path) -> dict[str, str]:
    found = re.findall(r'<section id="(\w+)">(.*?)</section>', page.read_text(), flags=re.S)
    return {key: unescape(body) for key, body in found}


def change(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_every_section_shows_the_run(made: Path) -> None:
    shown = bodies(made / "report.html")
    assert list(shown) == KEYS
    assert not [key for key, body in shown.items() if 'class="missing"' in body]
    expected = {
        "grid": "3 of 3 changed images",
        "shares": "<svg",
        "summary": "34.0 % (30.0\N{EN DASH}38.0)",
        "diagnosis": "not measured",
        "dose": "female: strength 2.250; the share asked for was reached",
        "leakage": "first +1.1, second \N{MINUS SIGN}1.1",
        "features": "Latent 17 <span>female, rank 1, score 0.1234",
        "sae": "0.0812",
        "probe": "Best accuracy 97.0 % at step 9; chance is 50.0 %",
        "costs": "1800 MiB",
        "settings": "name: mini_ddpm",
        "versions": "feedc0de",
        "repeat": "git checkout 0123abcd\nuv sync --frozen\ndifflens attribute=gender 'name=two words'",
    }
    assert {key: text in shown[key] for key, text in expected.items()} == dict.fromkeys(KEYS, True)


def test_the_header_says_the_result_and_that_faces_are_drawn(run_folder: Path) -> None:
    head = (run_folder / "report.html").read_text().split("<main>")[0]
    assert "gender: FD 0.226 → 0.006 over 512 images; 82 images were changed." in unescape(head)
    assert "at or below the 0.025 that a perfectly fair sampler shows" in unescape(head)
    assert "drawn proxies" in head
    (run_folder / "report.json").unlink()
    change(run_folder / "metrics.json", model="p2_celebahq")
    page = write_report(run_folder).read_text()
    assert "drawn proxies" not in page and write_report(run_folder).read_text() == page, "equal runs have equal pages"


def test_the_page_is_one_small_file_without_scripts(made: Path) -> None:
    page = (made / "report.html").read_text()
    targets = re.findall(r'(?:src|href|srcset|action|data)\s*=\s*["\']?([^"\'\s>]*)', page)
    targets += re.findall(r"url\(([^)]*)\)", page)
    assert len(targets) > 80
    assert not [target for target in targets if not target.startswith(("data:", "#"))]
    assert not re.search(r"<script|@import|<link(?! rel=\"icon\" href=\"data:)|\son\w+=", page)
    assert len(page.encode()) < 3_000_000


def test_references_inside_figures_stay_within_their_own_figure(made: Path) -> None:
    page = (made / "report.html").read_text()
    ids = re.findall(r'\bid="([^"]*)"', page)
    assert len(ids) == len(set(ids))
    references = re.findall(r'href="#([^"]*)"|url\(#([^)]*)\)', page)
    assert {first or second for first, second in references} <= set(ids)


def test_what_is_missing_is_named_with_the_task_that_makes_it(run_folder: Path) -> None:
    for name in ("report.json", "manifest.json", "config.yaml"):
        (run_folder / name).unlink()
    shutil.rmtree(run_folder / "images" / "difflens")
    shown = bodies(write_report(run_folder))
    expected = {"grid": "steer", "dose": "calibrate", "features": "attribution", "sae": "sae", "probe": "probe"}
    expected |= dict.fromkeys(("costs", "settings", "versions", "repeat"), "pipeline")
    missing = [key for key, body in shown.items() if 'class="missing"' in body]
    assert missing == list(expected)
    assert all(f"<code>difflens task={task}</code>" in shown[key] for key, task in expected.items())


def test_an_empty_folder_gives_a_page_and_no_folder_an_error(tmp_path: Path) -> None:
    shown = bodies(write_report(tmp_path))
    assert all('class="missing"' in shown[key] for key in KEYS)
    assert not (tmp_path / "images").exists()
    with pytest.raises(ValueError, match="outputs/latest"):
        write_report(tmp_path / "nowhere")


def test_a_broken_file_or_section_does_not_cost_the_others(run_folder: Path) -> None:
    (run_folder / "manifest.json").write_text('{"command": ')
    broken = {"probe": {"accuracy_per_step": {"0": 1}}, "sae": [1, 2], "attribution": None}
    change(run_folder / "report.json", **broken, features=[feature(17, "female", 1), {"latent": 5}])
    (run_folder / "images/features/17_top.png").write_bytes(b"no image")
    (run_folder / "metrics.json").unlink()
    page = write_report(run_folder)
    shown = bodies(page)
    assert "manifest.json is not valid JSON" in page.read_text()
    assert all("could not be shown" in shown[key] for key in ("probe", "sae"))
    assert "There is no strip of images on which it fires most" in shown["features"]
    assert "<svg" in shown["features"] and "Latent 5 " in shown["features"]
    assert "This run has no metrics.json" in shown["summary"]


def test_text_of_the_run_is_escaped_everywhere(run_folder: Path) -> None:
    evil = '"><script>alert(1)</script>&$x$ $y$'
    text = (run_folder / "metrics.json").read_text() + "\0" + (run_folder / "report.json").read_text()
    first, second = text.replace('"female"', json.dumps(evil)).replace('"age"', json.dumps(evil)).split("\0")
    (run_folder / "metrics.json").write_text(first)
    (run_folder / "report.json").write_text(second)
    (run_folder / "config.yaml").write_text(f"name: {evil}\n")
    (run_folder / "images/edited.json").write_text(json.dumps([{"id": 3, "from": "male", "to": evil}]))
    change(run_folder / "manifest.json", command=["difflens", evil], versions={evil: evil}, seconds={evil: 1.0})
    change(run_folder / "status.json", status="failed", error=evil)
    page = write_report(run_folder)
    assert "<script" not in page.read_text()
    assert not [key for key, body in bodies(page).items() if 'class="missing"' in body]
    assert f"This run failed: {evil}" in unescape(page.read_text())


def test_no_torch_is_imported() -> None:
    code = "import sys, difflens.report; print({'torch', 'lightning', 'omegaconf', 'hydra'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
