"""The labelling judge reads the same images once, however many questions are asked of them in turn."""

from types import SimpleNamespace

import torch

from difflens.study.workbench import Workbench
from difflens.vocabulary import Attribute


def test_the_same_images_are_read_once() -> None:
    read: list[int] = []

    def judge(images: torch.Tensor) -> dict[str, torch.Tensor]:
        read.append(len(images))
        return {"gender": images.flatten(1)[:, :2]}

    bench = object.__new__(Workbench)
    bench.__dict__ |= {"cfg": SimpleNamespace(missing_faces="count"), "_answered": None, "labelling_judge": judge}
    bench.__dict__ |= {"attribute": Attribute("gender", ("female", "male"))}
    first, second = torch.zeros(3, 3, 2, 2, dtype=torch.uint8), torch.ones(5, 3, 2, 2, dtype=torch.uint8)
    assert bench.answers(first) is bench.answers(first)
    assert len(bench.answers(second)["gender"]) == 5 and len(bench.answers(first)["gender"]) == 3
    assert read == [3, 5, 3]
