"""Artifacts are whole and unchanged, or made anew; a shard and a folder never lie about being finished."""

import errno
import json
import logging
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from difflens.store.artifacts import (
    ArtifactStore,
    fingerprint,
    is_finished,
    read_shard,
    require_equal,
    shards_of,
    write_shard,
)
from difflens.store.errors import ArtifactError, ArtifactMismatchError, UserError
from difflens.store.files import room_for
from difflens.store.fingerprints import describe_difference

SPEC = {"model": "miniature", "site": {"module": "mid_block", "tensor": "output"}, "steps": [981, 961], "lr": 1e-4}


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(tmp_path)


def make(folder: Path) -> None:
    (folder / "inner").mkdir()
    (folder / "inner" / "weights.bin").write_bytes(bytes(range(200)))
    (folder / "inner" / "weights.bin").chmod(0o600)


def test_equal_values_have_one_fingerprint_and_other_values_another():
    base = fingerprint(SPEC)
    assert len(base) == 16 and int(base, 16) >= 0
    assert base == fingerprint(dict(reversed(SPEC.items()))) == fingerprint(SPEC | {"steps": (981.0, 961)})
    others = [SPEC | {"steps": [961, 981]}, SPEC | {"lr": 1.1e-4}, SPEC | {"lr": "0.0001"}, SPEC | {"seed": None}]
    assert len({base, *map(fingerprint, others)}) == 5
    assert fingerprint({"a": True}) != fingerprint({"a": 1})


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"sae": {"lr": float("nan")}}, "sae.lr is nan"),
        ({"grid": [1, float("inf")]}, "grid.1 is inf"),
        ({"folder": Path("x")}, "folder = .* PosixPath"),
        ({"a": {3: 1}}, "key 3 under a is no string; write '3'"),
    ],
)
def test_values_that_identify_nothing_are_refused_by_name(spec, words):
    with pytest.raises(ValueError, match=words):
        fingerprint(spec)


def test_what_is_made_is_found_again_whatever_the_order_of_keys(store):
    artifact, reused = store.get_or_create("sae", SPEC, make)
    assert not reused and artifact.folder == store.path("sae", SPEC)
    found, reused = store.get_or_create("sae", dict(reversed(SPEC.items())), lambda folder: pytest.fail("made twice"))
    assert reused and found == artifact == store.read("sae", artifact.fingerprint)
    assert store.find("sae", SPEC | {"lr": 2e-4}) is None and store.find("probe", SPEC) is None
    assert (artifact.folder / "inner" / "weights.bin").stat().st_mode & 0o777 == 0o644
    assert {"spec.json", "inner/weights.bin"} == {*artifact.files}
    assert json.loads((artifact.folder / "files.json").read_text()) == artifact.files
    assert [path.name for path in artifact.folder.parent.iterdir()] == [artifact.fingerprint]


def test_an_exception_leaves_nothing_and_a_resumable_stage_its_shards_which_are_not_found(store):
    def stop_in_the_middle(folder: Path) -> None:
        write_shard(folder, "shard-0", {"x": torch.ones(3)})
        raise KeyboardInterrupt

    for resumable in (False, True):
        with pytest.raises(KeyboardInterrupt):
            store.get_or_create("activations", SPEC, stop_in_the_middle, resumable=resumable)
        assert store.find("activations", SPEC) is None
        left = [path.name for path in (store.root / "activations").iterdir()]
        assert left == ([store.path("activations", SPEC).name + ".partial"] if resumable else [])

    def go_on(folder: Path) -> None:
        assert is_finished(folder, "shard-0") and not is_finished(folder, "shard-1")
        write_shard(folder, "shard-1", {"x": torch.zeros(3)})

    folder = store.get_or_create("activations", SPEC, go_on, resumable=True)[0].folder
    assert read_shard(folder, "shard-0")["x"].tolist() == [1, 1, 1]
    write_shard(folder, "shard-2", {"x": torch.zeros(3)})
    assert [path.stem for path in shards_of(folder)] == ["shard-0", "shard-1"], "a stray shard is read"


def gone(path: Path) -> None:
    path.unlink()


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])


def flipped(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-9] ^= 1
    path.write_bytes(data)


def other_shape(path: Path) -> None:
    path.write_text('{"x": {"sha256": "0"}}')


def half_removed(path: Path) -> None:
    shutil.rmtree(path.parent)


def a_file(path: Path) -> None:
    shutil.rmtree(path.parent)
    path.parent.touch()


def a_broken_link(path: Path) -> None:
    shutil.rmtree(path.parent)
    path.parent.symlink_to("nowhere")


FILES = ["inner/weights.bin", "files.json", "spec.json"]
DAMAGES = [(name, how) for name in FILES for how in (gone, truncated, flipped)]
DAMAGES += [("files.json", other_shape), ("inner/weights.bin", half_removed), ("spec.json", a_file)]
DAMAGES += [("spec.json", a_broken_link)]


@pytest.mark.parametrize(("name", "how"), DAMAGES)
def test_what_is_damaged_or_half_removed_is_told_and_made_anew(store, caplog, name, how):
    artifact, _ = store.get_or_create("sae", SPEC, make)
    assert artifact.is_there
    how(artifact.folder / name)
    with pytest.raises(ArtifactError):
        store.read("sae", artifact.fingerprint)
    again, reused = store.get_or_create("sae", SPEC, make)
    assert again == artifact and not reused and store.find("sae", SPEC) == artifact
    assert f"sae {artifact.fingerprint} is made anew: {artifact.folder}" in caplog.text
    assert [path.name for path in artifact.folder.parent.iterdir()] == [artifact.fingerprint]


@pytest.mark.parametrize("part", ["", ".partial"])
def test_a_file_where_a_folder_is_to_be_filled_is_no_trouble(store, part):
    folder = store.path("sae", SPEC)
    folder.parent.mkdir()
    folder.with_name(folder.name + part).touch()
    assert store.get_or_create("sae", SPEC, make, resumable=True)[0].is_there


def test_an_artifact_that_was_moved_is_refused_and_kept(store):
    mine, other = (store.get_or_create("sae", SPEC | {"model": name}, make)[0] for name in ("miniature", "sd15"))
    shutil.rmtree(mine.folder)
    other.folder.rename(mine.folder)
    with pytest.raises(ArtifactMismatchError, match=r"model: sd15 != miniature.*delete"):
        store.get_or_create("sae", SPEC, make)
    assert (mine.folder / "inner" / "weights.bin").is_file()


@pytest.mark.parametrize("resumable", [False, True])
def test_what_is_removed_while_it_is_made_ends_in_one_line_and_blocks_nothing(store, resumable):
    def lose(folder: Path) -> None:
        shutil.rmtree(store.root)
        (folder / "x").write_text("x")

    with pytest.raises(UserError, match=r"partial was removed while this run used it; run the same command again"):
        store.get_or_create("sae", SPEC, lose, resumable=resumable)
    assert store.get_or_create("sae", SPEC, make, resumable=resumable)[0].is_there


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError('IoError(Os { code: 28, kind: StorageFull, message: "No space left on device" })'),
    ],
)
def test_a_full_disk_is_one_clear_line_and_leaves_nothing(store, error):
    def fill(folder: Path) -> None:
        (folder / "half").write_text("x")
        raise error

    with pytest.raises(ArtifactError, match=r"disk of .* is full .*sae.*run the same command again"):
        store.get_or_create("sae", SPEC, fill)
    assert list((store.root / "sae").iterdir()) == []


def test_differences_are_named_by_dotted_path():
    other = {"model": "miniature", "site": {"module": "up_blocks.0", "tensor": "output"}, "steps": [981], "k": 32}
    assert describe_difference(SPEC, other) == [
        "k: (absent) != 32",
        "lr: 0.0001 != (absent)",
        "site.module: mid_block != up_blocks.0",
        "steps: [981, 961] != [981]",
    ]
    long = {"steps": list(range(50))}
    assert describe_difference(long, {"steps": list(range(25))}) == ["steps: 50 values != 25 values"]
    shifted = describe_difference(long, {"steps": [*range(48), 99, 100]})
    assert shifted == ["steps.48: 48 != 99 (and 1 more in steps)"]
    require_equal(SPEC, dict(SPEC), "the SAE")
    with pytest.raises(ArtifactMismatchError, match=r"the SAE was made for something else .*module: mid_block != up"):
        require_equal(SPEC, other, "the SAE")


def test_only_shards_with_their_own_bytes_count_as_finished(tmp_path):
    for name in "abcd":
        path = write_shard(tmp_path, name, {"x": torch.arange(4.0).view(2, 2).T})
        assert path.stat().st_mode & 0o777 == 0o644
    truncated(tmp_path / "b.safetensors")
    flipped(tmp_path / "c.safetensors")
    (tmp_path / "d.safetensors.sha256").unlink()
    assert [name for name in "abcd" if is_finished(tmp_path, name)] == ["a"]
    assert read_shard(tmp_path, "c")["x"].shape == (2, 2), "safetensors itself does not notice the flipped bit"
    assert read_shard(tmp_path, "a")["x"].tolist() == [[0, 2], [1, 3]]


def test_two_makers_make_once(store):
    started, made, results = threading.Event(), [], []

    def slow(folder: Path) -> None:
        started.set()
        made.append(folder)
        threading.Event().wait(0.3)
        (folder / "x").write_text("x")

    threads = [
        threading.Thread(target=lambda: results.append(store.get_or_create("sae", SPEC, slow)[1])) for _ in range(2)
    ]
    threads[0].start()
    assert started.wait(5)
    threads[1].start()
    for thread in threads:
        thread.join(10)
    assert len(made) == 1 and results == [False, True]


def test_what_does_not_fit_is_refused_in_human_units(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    room_for(tmp_path / "not" / "there" / "yet", 3 * 2**19)
    assert "1.5 MiB to write" in caplog.text
    for there in (False, True):
        with pytest.raises(ValueError, match=r"1024\.0 TiB will not fit .* whose disk has"):
            room_for(tmp_path, 2**50, there=there)


def test_torch_is_not_imported_for_the_store():
    code = "import sys, difflens.store.artifacts; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
