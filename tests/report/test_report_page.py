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
from sweep_folder import MEASURES

from difflens.report import write_report
from difflens.report.sections import SECTIONS

STEPS = 10
KEYS = [section.key for section in SECTIONS if section.key not in ("folders", "compare", "transfer")]


def metrics() -> dict[str, Any]:
    share = {value: {"share": value, "low": value - 0.04, "high": value + 0.04} for value in (0.34, 0.66, 0.503, 0.497)}
    common = {"n": 512, "missing_faces": 0, "fd_chance": 0.0249, "fd_max": 0.7071, "intersectional_fd": 0.4}
    original = {"fd": 0.2263, "fd_hard": 0.2251, "shares": {"female": share[0.34], "male": share[0.66]}, "fid": 3.21}
    after = {"fd": 0.0061, "fd_hard": 0.0055, "shares": {"female": share[0.503], "male": share[0.497]}, "fid": 3.05}
    leakage = {
        name: {"flip_rate": rate, "flip_rate_edited": 5 * rate, "shift": {"first": rate / 2, "second": -rate / 2}}
        for name, rate in (("age", 0.0213), ("glasses", 0.0042), ("hair", 0.0337))
    }
    quality = {"kid": 0.0011, "kid_sd": 0.0002, "clip_i": 0.9712, "clip_i_paper": 0.9856, "editing_precision": 5.1}
    return {
        "model": "mini_ddpm",
        "attribute": "gender",
        "classes": ["female", "male"],
        "target": {"female": 0.5, "male": 0.5},
        "n": 512,
        "protocol": {"judge": "second_judge", "reference": {"name": "balanced renders", "n": 4096, "sha256": "abc"}},
        "measures": MEASURES,
        "rows": [
            {"method": "original", "edited": 0, "leakage": {}, "clip_i": None, **common, **original},
            {"method": "difflens", "edited": 82, "leakage": leakage, **common, **quality, **after},
        ],
    }


def feature(latent: int, name: str, rank: int) -> dict[str, Any]:
    steps = np.linspace(0, 1, STEPS)
    return {
        "latent": latent,
        "class": name,
        "rank": rank,
        "score": 0.1234 / rank,
        "score_per_step": (steps * (1 - steps) / rank).tolist(),
        "activation_per_step": {"female": steps.tolist(), "male": (steps / 3).tolist()},
        "top": f"images/features/{latent}_top.png",
        "effect": f"images/features/{latent}_effect.png",
        "effect_shift": {"female": 0.3, "male": -0.3},
    }


def report() -> dict[str, Any]:
    points = [
        {"strength": {"female": s, "male": 1.5}, "success": {"female": s / 3}, "shares": {"female": s / 6}}
        for s in (1.5, 3.0, 2.25, 1.875)
    ]
    return {
        "dose": {"neutral": 1.0, "chosen": {"female": 2.25, "male": 1.0}, "met": {"female": True}, "points": points},
        "sae": {
            "width": 1024,
            "k": 32,
            "dim": 128,
            "fvu": 0.0812,
            "fvu_per_step": [0.2, *[0.08] * (STEPS - 2), None],
            "loss_recovered_per_step": [0.9] * STEPS,
            "l0": 31.9,
            "dead_share": 0.01,
            "density": {"edges": [-6 + i for i in range(7)], "counts": [1, 5, 80, 300, 500, 20]},
        },
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


def save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def make_run(folder: Path) -> Path:
    """A run folder as the tasks write it, with random pixels."""
    random = np.random.default_rng(0)
    for image_id in range(40):
        for method in ("original", "difflens"):
            save(folder / "images" / method / f"{image_id}.png", random.integers(0, 256, (32, 32, 3), dtype=np.uint8))
    for latent in (17, 40):
        for part in ("top", "effect"):
            save(folder / f"images/features/{latent}_{part}.png", random.integers(0, 256, (64, 256, 3), dtype=np.uint8))
    edited = [{"id": i, "from": "male", "to": "female"} for i in (3, 7, 30)]
    status = {"status": "done", "seconds": 300.0}
    data = {"metrics": metrics(), "report": report(), "manifest": MANIFEST, "status": status, "images/edited": edited}
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
    assert "drawn proxies" not in write_report(run_folder).read_text()


def test_the_page_is_one_small_file_without_scripts(made: Path) -> None:
    page = (made / "report.html").read_text()
    targets = re.findall(r'(?:src|href|srcset|action|data)\s*=\s*["\']?([^"\'\s>]*)', page) + re.findall(
        r"url\(([^)]*)\)", page
    )
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


def test_the_same_run_gives_the_same_page(run_folder: Path) -> None:
    (run_folder / "report.json").unlink()
    assert write_report(run_folder).read_text() == write_report(run_folder).read_text()


def test_no_torch_is_imported() -> None:
    code = "import sys, difflens.report; print({'torch', 'lightning', 'omegaconf', 'hydra'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
