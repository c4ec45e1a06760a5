"""The paper's own networks at full size through the whole program: `uv run python experiments/real_networks.py`.

Writes a P2 CelebA-HQ checkpoint, FairFace's ResNet-34, open_clip's ViT-B/32 and Inception v3 with random weights as files of
the published formats, runs the program on a few images, and prints seconds and peak memory of each run. What it measures
means nothing here: the judge is even shifted so that it sees both classes. `--folders 300 900` runs `task=evaluate` alone on
folders of so many images, whose peaks should be about equal; `--clip ViT-L-14` with another of open_clip's models;
`--images-only` without the networks, which shows what memory the images themselves take.
"""

import argparse
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import open_clip
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision.models import inception_v3, resnet34

from difflens.data.activations import ActivationStore
from difflens.judges.fairface import FairFaceJudge

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))
from guided_diffusion import GuidedUNet  # type: ignore[import-not-found]  # noqa: E402

FEMALE, MALE, OUTPUTS = 8, 7, 18
"""Outputs of FairFace."""
CLIP = "ViT-B-32"
NETWORKS = ["model=p2_celebahq", "attribute=gender", "metric.extractor.features.sha256=null"]
STAND_IN = [
    "attribute=gender",
    "judge=miniature",
    "metric=default",
    "metric.extractor._target_=stand_in.Thumbnails",
    "~metric.extractor.folder",
]
SMALL = [
    "model.steps=2",
    "model.micro_batch=4",
    "data.images=16",
    "data.validation=0.25",
    "data.buffer=1024",
    "sae.training.tokens=4096",
    "sae.training.batch=256",
    "probe.iterations=5",
    "attribution.images_per_class=4",
    "attribution.statistics_images=8",
    "metric.images=4",
    "metric.kid_subset=2",
    "metric.cards=1",
]


class Published(nn.Module):
    """Inception as its TorchScript file has it: the features under `layers`."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = inception_v3(weights=None, aux_logits=False, init_weights=False, transform_input=False)
        self.layers.fc = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


@torch.no_grad()
def write_weights(folder: Path, clip: str) -> None:
    """All four files, where the configuration looks for them; CLIP's numbers are of half precision, as OpenAI's are."""
    folder.mkdir(parents=True)
    torch.manual_seed(0)
    network = GuidedUNet(128, (1, 1, 2, 2, 4, 4), 1, (16,), 64)
    network(torch.zeros(1, 3, 64, 64), torch.zeros(1))
    torch.save(network.state, folder / "celebahq_p2.pt")
    torch.save(resnet34(num_classes=OUTPUTS).state_dict(), fairface(folder))
    state = open_clip.create_model(clip).half().float().state_dict()
    save_file({name: value.contiguous() for name, value in state.items()}, folder / f"{clip}-openai.safetensors")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        inception = torch.jit.trace(Published().eval(), torch.zeros(1, 3, 299, 299))
    inception.save(folder / "inception-2015-12-05.pt")
    write_images(folder / "reference_images", 8, seed=0)


def apart(work: Callable[..., None], *arguments: Any) -> None:
    """Do something in a process of its own: Linux counts the memory of whoever starts a process as that process's peak."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        pool.submit(work, *arguments).result()


def fairface(folder: Path) -> Path:
    return folder / "res34_fair_align_multi_7_20190809.pt"


def write_images(folder: Path, count: int, *, seed: int) -> None:
    """Coloured clouds of 256 × 256 pixels."""
    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(seed)
    for number in range(count):
        small = torch.randint(0, 256, (8, 8, 3), generator=generator, dtype=torch.uint8)
        Image.fromarray(small.numpy()).resize((256, 256), Image.Resampling.BICUBIC).save(folder / f"{number:05d}.png")


@torch.no_grad()
def centre_judge(weights: Path, activations: Path) -> None:
    """Shift FairFace's bias so that half of the images behind the activations are women and half are men."""
    state = torch.load(fairface(weights))
    network = resnet34(num_classes=OUTPUTS)
    network.load_state_dict(state)
    outputs = FairFaceJudge(network.eval()).outputs(ActivationStore(activations).images.float() / 255)
    ordered = (outputs[:, FEMALE] - outputs[:, MALE]).sort().values
    state["fc.bias"][FEMALE] -= ordered[len(ordered) // 2 - 1 : len(ordered) // 2 + 1].mean()
    torch.save(state, fairface(weights))


def difflens(folder: Path, *overrides: str) -> None:
    """Run the program in a process of its own, and print its seconds and its peak memory."""
    places = [f"paths.outputs={folder / 'outputs'}", f"paths.weights={folder / 'weights'}"]
    command = [sys.executable, "-m", "difflens.main", *SMALL, *places, *overrides]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent), "DIFFLENS_ALLOW_TARGETS": "stand_in"}
    start = time.perf_counter()
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, env=environment)
    _, status, usage = os.wait4(process.pid, 0)
    seconds, peak = time.perf_counter() - start, usage.ru_maxrss / 2**10
    name = " ".join(part for part in overrides if part.startswith(("task=", "images=", "judge=")))
    print(f"{name.replace(str(folder), '…'):<60} {seconds:7.1f} s {peak:8,.0f} MiB", flush=True)
    if code := os.waitstatus_to_exitcode(status):
        sys.exit(code)
    manifest = json.loads((folder / "outputs" / "latest" / "manifest.json").read_text())
    print("  " + ", ".join(f"{stage} {spent:.1f} s" for stage, spent in manifest["seconds"].items()), flush=True)


def study(folder: Path, clip: str) -> None:
    """Convert, sample what is learnt from, run all stages, and evaluate the images by the paper's protocol."""
    networks = [*NETWORKS, f"metric.extractor.embeddings.model={clip}"]
    labelled = [*networks, "judge=fairface", f"judge.scores.clip.model={clip}"]
    difflens(folder, *labelled, "task=convert")
    difflens(folder, *labelled, "task=activations")
    (made,) = (folder / "outputs" / "artifacts" / "activations").glob("*/spec.json")
    apart(centre_judge, folder / "weights", made.parent)
    difflens(folder, *labelled, "task=pipeline")
    images = (folder / "outputs" / "latest" / "images").resolve()
    reference = folder / "weights" / "reference_images"
    evaluate(folder, networks, images / "difflens", reference, f"originals={images / 'original'}")


def evaluate(folder: Path, networks: Sequence[str], images: Path, reference: Path, originals: str) -> None:
    judges = [] if "judge=miniature" in networks else ["judge=official"]
    difflens(folder, *networks, *judges, "task=evaluate", f"images={images}", f"reference={reference}", originals)


def folders(folder: Path, counts: Sequence[int], networks: Sequence[str]) -> None:
    """Evaluate folders of so many images, each with itself as its reference."""
    for count in counts:
        images = folder / f"images_{count}"
        write_images(images, count, seed=count)
        evaluate(folder, networks, images, images, "originals=null")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--folders", type=int, nargs="+", metavar="IMAGES", help="only evaluate folders of so many images"
    )
    parser.add_argument("--clip", default=CLIP, metavar="MODEL", help=f"open_clip's model (default {CLIP})")
    parser.add_argument("--images-only", action="store_true", help="evaluate folders with a stand-in for all networks")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="difflens-") as name:
        folder = Path(name)
        if asked.images_only:
            folders(folder, asked.folders or (300, 10_000), STAND_IN)
            return
        apart(write_weights, folder / "weights", asked.clip)
        if asked.folders:
            folders(folder, asked.folders, [*NETWORKS, f"metric.extractor.embeddings.model={asked.clip}"])
        else:
            study(folder, asked.clip)


if __name__ == "__main__":
    main()
