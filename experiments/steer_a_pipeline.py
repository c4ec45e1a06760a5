"""Steer an ordinary diffusers pipeline with what a run found: `uv run python experiments/steer_a_pipeline.py`.

Needs a finished run (`uv run difflens`); pass its folder to take another one than `outputs/latest`.
"""

import argparse

import torch
from diffusers import DDIMPipeline

import difflens
from difflens.judges.protocol import select_classes
from difflens.miniature.judges import load_judge
from difflens.store.locations import locate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", nargs="?", default="outputs/latest")
    parser.add_argument("--images", type=int, default=64)
    asked = parser.parse_args()

    pipe = DDIMPipeline.from_pretrained(locate("package:miniature/weights/generator"))
    pipe.set_progress_bar_config(disable=True)
    features = difflens.load_features(asked.run)

    def generate() -> torch.Tensor:
        steps = len(features.timesteps)
        made = pipe(asked.images, torch.Generator().manual_seed(7), num_inference_steps=steps, output_type="np").images
        return torch.from_numpy(made).permute(0, 3, 1, 2)

    before = generate()
    with difflens.steer(pipe, features):
        after = generate()

    judge, attribute = load_judge("package:miniature/weights/second_judge"), features.attribute
    columns = select_classes(judge, attribute)  # type: ignore[arg-type]
    for name, images in (("original", before), ("steered", after)):
        found = difflens.fairness_discrepancy(judge(images)[attribute.name][:, columns], attribute.classes)
        shares = ", ".join(f"{cls} {share.share:.3f}" for cls, share in found.shares.items())
        print(f"{name}: {attribute.name} FD hard {found.fd_hard:.3f} (by chance {found.fd_chance:.3f}); {shares}")


if __name__ == "__main__":
    main()
