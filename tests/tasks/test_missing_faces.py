"""A judge that finds no face in some images, in every stage of a study."""

import shutil
from pathlib import Path

import pytest
import torch
from program import undisturbed
from torch import Tensor


def hide_dark_faces() -> None:
    """Let the miniature's judges find no face in images darker than most."""
    from difflens.miniature.judges import MiniatureJudge

    plain = MiniatureJudge.__call__

    def judge(self: MiniatureJudge, images: Tensor) -> dict[str, Tensor]:
        dark = images.mean((1, 2, 3)) < 0.56
        return {name: logits.masked_fill(dark[:, None], torch.nan) for name, logits in plain(self, images).items()}

    MiniatureJudge.__call__ = judge  # type: ignore[method-assign]


def test_missing_faces_are_counted_in_every_stage(tmp_path: Path) -> None:
    program = undisturbed().copied(tmp_path / "study")
    for folder in (program.folder / "outputs" / "artifacts").iterdir():
        if folder.name not in ("activations", "sae", "images"):  # in which nothing is of the judges
            shutil.rmtree(folder)
    said = ""
    for settings in (["task=steer", "mitigation.assignment=oracle", "mitigation.strength=1"], []):
        said += program.done(*settings, prepare=hide_dark_faces).out
        for row in program.json("metrics.json")["rows"]:
            assert 0 < row["missing_faces"] < row["n"]
            assert sum(share["share"] for share in row["shares"].values()) == pytest.approx(1)
    assert "no face in" in said
    assert "no face" in {entry["from"] for entry in program.json("images/edited.json")}
    assert "images without a face" in (program.latest / "report.html").read_text()
