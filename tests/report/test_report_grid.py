"""images/grid.png: the right images in the right places."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from difflens.report.figures import EDITED
from difflens.report.images import cell_size, draw_grid, embed, select_pairs
from difflens.report.run_folder import Edit

EDITS = dict.fromkeys((5, 2), Edit("male", "female"))


def colour(image_id: int, method: str) -> tuple[int, int, int]:
    return (10 + image_id, 200 if method == "original" else 90, 50)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for method in ("original", "difflens"):
        (tmp_path / method).mkdir()
        for image_id in range(8):
            Image.new("RGB", (32, 32), colour(image_id, method)).save(tmp_path / method / f"{image_id:06d}.png")
    return tmp_path


def box(grid: np.ndarray, wanted: tuple[int, int, int]) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of a colour; the whole box has it."""
    rows, columns = np.nonzero((grid == wanted).all(-1))
    left, top, right, bottom = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
    assert (grid[top:bottom, left:right] == wanted).all()
    return int(left), int(top), int(right), int(bottom)


def test_pairs_stand_side_by_side_with_edited_ones_first(images: Path) -> None:
    pairs = select_pairs(images, EDITS, method="difflens")
    assert [pair.id for pair in pairs] == [2, 5, 0, 1, 3, 4, 6, 7]
    grid = np.asarray(draw_grid(pairs, method="DiffLens", columns=3))
    boxes = {pair.id: [box(grid, colour(pair.id, method)) for method in ("original", "difflens")] for pair in pairs}
    for before, after in boxes.values():
        assert (before[2] - before[0], before[3] - before[1]) == (64, 64)
        assert (after[1], after[3]) == (before[1], before[3]) and 0 < after[0] - before[2] < 10
    order = sorted(boxes, key=lambda i: (boxes[i][0][1], boxes[i][0][0]))
    assert order == [2, 5, 0, 1, 3, 4, 6, 7]
    assert len({boxes[i][0][1] for i in order[:3]}) == 1 and boxes[1][0][1] > boxes[0][0][3]


def test_only_edited_pairs_have_a_coloured_frame(images: Path) -> None:
    pairs = select_pairs(images, EDITS, method="difflens")
    grid = np.asarray(draw_grid(pairs, method="DiffLens", columns=3))
    orange = tuple(int(EDITED[i : i + 2], 16) for i in (1, 3, 5))
    for pair in pairs:
        left, top, *_ = box(grid, colour(pair.id, "original"))
        _, _, right, bottom = box(grid, colour(pair.id, "difflens"))
        around = [grid[top, left - 1], grid[top, right], grid[top - 1, left], grid[bottom, left]]
        assert all((pixel == orange).all() == (pair.id in EDITS) for pixel in around)


def test_small_images_grow_by_whole_squares(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8)
    for method in ("original", "difflens"):
        (tmp_path / method).mkdir()
        Image.fromarray(pixels).save(tmp_path / method / "4.png")
    grid = np.asarray(draw_grid(select_pairs(tmp_path, {}, method="difflens"), method="DiffLens"))
    enlarged = pixels.repeat(2, 0).repeat(2, 1)
    windows = np.lib.stride_tricks.sliding_window_view(grid, (64, 64, 3))[..., 0, :, :, :]
    corners = np.argwhere((windows[:, :, 0, 0] == pixels[0, 0]).all(-1))
    found = [(y, x) for y, x in corners if (windows[y, x] == enlarged).all()]
    assert len(found) == 2 and found[0][0] == found[1][0]


def test_large_images_shrink_to_the_cell() -> None:
    assert cell_size((256, 256)) == (128, 128) and cell_size((512, 256)) == (128, 64)
    assert cell_size((32, 32)) == (64, 64) and cell_size((20, 20)) == (60, 60) and cell_size((100, 100)) == (100, 100)


def test_pairs_need_both_images_and_are_limited(images: Path) -> None:
    (images / "difflens" / "000000.png").unlink()
    Image.new("RGB", (4, 4)).save(images / "difflens" / "overview.png")
    pairs = select_pairs(images, EDITS, method="difflens", edited=1, untouched=2)
    assert [pair.id for pair in pairs] == [2, 1, 4]


def test_small_images_are_embedded_as_they_are_and_large_ones_reduced(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (512, 512, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "large.png")
    Image.new("RGB", (32, 32), "red").save(tmp_path / "small.png")
    large, small = embed(tmp_path / "large.png", longest=128), embed(tmp_path / "small.png", longest=128)
    assert small is not None and small.pixelated and small.uri.startswith("data:image/png;base64,")
    assert large is not None and not large.pixelated
    assert (large.width, large.height) == (128, 128) and len(large.uri) < 40_000
    assert embed(tmp_path / "absent.png", longest=128) is None
