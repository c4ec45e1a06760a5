"""Artifacts are complete and unchanged, or refused; a shard, a lock and a folder never lie about being finished."""

import errno
import json
import logging
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from difflens.store.artifacts import (
    ArtifactStore,
    check_space,
    describe_difference,
    fingerprint,
    finished_shards,
    read_shard,
    require_equal,
    write_shard,
)
from difflens.store.errors import ArtifactError, ArtifactExistsError, ArtifactMismatchError

SPEC = {"model": "miniature", "site": {"module": "mid_block", "tensor": "output"}, "steps": [981, 961], "lr": 1e-4}


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(tmp_path)


def make(folder: Path) -> None:
    (folder / "inner").mkdir()
    (folder / "inner" / "weights.bin").write_bytes(bytes(range(200)))
    os.chmod(folder / "inner" / "weights.bin", 0o600)


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
    assert reused and found == artifact
    assert store.find("sae", SPEC | {"lr": 2e-4}) is None and store.find("probe", SPEC) is None
    assert (artifact.folder / "inner" / "weights.bin").stat().st_mode & 0o777 == 0o644
    assert sorted(path.name for path in artifact.folder.parent.iterdir()) == [artifact.fingerprint]


def test_an_exception_leaves_nothing_and_a_resumable_stage_its_shards_which_are_not_found(store):
    import torch

    def stop_in_the_middle(folder: Path) -> None:
        write_shard(folder, "0", {"x": torch.ones(3)})
        raise KeyboardInterrupt

    for resumable in (False, True):
        with pytest.raises(KeyboardInterrupt):
            store.get_or_create("activations", SPEC, stop_in_the_middle, resumable=resumable)
        assert store.find("activations", SPEC) is None
        left = [path.name for path in (store.root / "activations").iterdir()]
        assert left == ([store.path("activations", SPEC).name + ".partial"] if resumable else [])

    def go_on(folder: Path) -> None:
        assert finished_shards(folder) == ["0"]
        write_shard(folder, "1", {"x": torch.zeros(3)})

    artifact, _ = store.get_or_create("activations", SPEC, go_on, resumable=True)
    assert finished_shards(artifact.folder) == ["0", "1"]
    assert read_shard(artifact.folder, "0")["x"].tolist() == [1, 1, 1]


def damage(path: Path, how: str) -> None:
    data = bytearray(path.read_bytes())
    if how == "gone":
        path.unlink()
    elif how == "truncated":
        path.write_bytes(data[:-3])
    else:
        data[7] ^= 1
        path.write_bytes(data)


@pytest.mark.parametrize("how", ["gone", "truncated", "flipped"])
@pytest.mark.parametrize("name", ["inner/weights.bin", "files.json", "spec.json"])
def test_damage_is_refused_with_the_file_and_the_remedy(store, how, name):
    folder = store.get_or_create("sae", SPEC, make)[0].folder
    damage(folder / name, how)
    with pytest.raises(ArtifactError) as caught:
        store.find("sae", SPEC)
    assert f"delete {folder} to rebuild it" in str(caught.value)
    # A flipped bit in the list of files may read as a change of the file that the line is about.
    assert str(folder / name) in str(caught.value) or (name, how) == ("files.json", "flipped")


@pytest.mark.parametrize("files", ["[]", '{"x": 3}', '{"x": {"sha256": "0"}}'])
def test_a_list_of_files_of_another_shape_is_refused(store, files):
    folder = store.get_or_create("sae", SPEC, make)[0].folder
    (folder / "files.json").write_text(files)
    with pytest.raises(ArtifactError, match=r"files\.json is missing or damaged; delete"):
        store.find("sae", SPEC)


def test_a_folder_with_another_spec_is_refused(store):
    folder = store.get_or_create("sae", SPEC, make)[0].folder
    (folder / "spec.json").write_text(json.dumps(SPEC | {"model": "sd15"}))
    with pytest.raises(ArtifactError, match=r"model: sd15 != miniature.*delete"):
        store.find("sae", SPEC)


def test_an_artifact_is_never_overwritten(store):
    folder = store.get_or_create("sae", SPEC, make)[0].folder
    with pytest.raises(ArtifactExistsError, match="not overwritten"), store.create("sae", SPEC):
        pytest.fail("the block must not run")
    assert (folder / "inner" / "weights.bin").stat().st_size == 200


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


def test_differences_are_named_by_dotted_path(store):
    other = {"model": "miniature", "site": {"module": "up_blocks.0", "tensor": "output"}, "steps": [981], "k": 32}
    assert describe_difference(SPEC, other) == [
        "k: (absent) != 32",
        "lr: 0.0001 != (absent)",
        "site.module: mid_block != up_blocks.0",
        "steps: [981, 961] != [981]",
    ]
    assert describe_difference({"steps": list(range(50))}, {"steps": list(range(25))}) == [
        "steps: 50 values != 25 values"
    ]
    shifted = describe_difference({"steps": list(range(50))}, {"steps": [*range(48), 99, 100]})
    assert shifted == ["steps.48: 48 != 99 (and 1 more in steps)"]
    require_equal(SPEC, dict(SPEC), "the SAE")
    with pytest.raises(
        ArtifactMismatchError, match=r"the SAE was made for something else .*site.module: mid_block != up"
    ):
        require_equal(SPEC, other, "the SAE")


def test_only_shards_with_their_own_bytes_count_as_finished(tmp_path):
    import torch

    for name in ("a", "b", "c", "d"):
        path = write_shard(tmp_path, name, {"x": torch.arange(4.0).view(2, 2).T}, metadata={"step": name})
        assert path.stat().st_mode & 0o777 == 0o644
    damage(tmp_path / "b.safetensors", "truncated")
    data = bytearray((tmp_path / "c.safetensors").read_bytes())
    data[-1] ^= 1
    (tmp_path / "c.safetensors").write_bytes(data)
    (tmp_path / "d.safetensors.sha256").unlink()
    assert finished_shards(tmp_path) == ["a"]
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
    check_space(tmp_path / "not" / "there" / "yet", 3 * 2**19)
    assert "1.5 MiB to write" in caplog.text
    with pytest.raises(ArtifactError, match=r"1024\.0 TiB will not fit .* only .* are free"):
        check_space(tmp_path, 2**50)


def test_torch_is_not_imported_for_the_store():
    code = "import sys, difflens.store.artifacts; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
