"""Somebody at a terminal sees a bar with the stage's name; a pipe gets plain lines, few of them and none that are blank."""

import itertools
import os
import pty
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from program import undisturbed

from difflens.store.progress import progress

SCRIPT = """
import torch, lightning as L
from difflens.store import progress as shown
from difflens.training.callbacks import StageProgress
shown.PATIENCE = 0

class Module(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
    def training_step(self, batch):
        return self.layer(batch[0]).mean()
    def predict_step(self, batch):
        return batch[0]
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)

data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.zeros(6, 1)), 2)
def trainer(name):
    return L.Trainer(callbacks=[StageProgress(name)], accelerator="cpu", logger=False, max_epochs=2,
                     enable_checkpointing=False, enable_model_summary=False)
assert list(shown.progress(range(4), "judging")) == [0, 1, 2, 3]
assert list(shown.progress(iter("ab"), "reading")) == ["a", "b"]
trainer("training").fit(Module(), data)
assert len(trainer("sampling").predict(Module(), data)) == 3
"""


def test_a_pipe_gets_plain_lines(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Predicting" not in done.stderr and "Epoch" not in done.stderr
    expected = [f"judging: {i} of 4" for i in range(1, 5)] + ["reading: 1", "reading: 2"]
    expected += [f"training: {i} of 6" for i in range(1, 7)] + [f"sampling: {i} of 3" for i in range(1, 4)]
    assert done.stdout.splitlines() == expected


def test_a_long_stage_tells_of_itself_ever_more_rarely(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    clock = itertools.count()
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    assert len(list(progress(range(86_400), "sampling"))) == 86_400
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("sampling: 10 of") and len(lines) == 13


def test_a_terminal_shows_a_bar_by_the_name_of_the_stage(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    asked, env = [sys.executable, "-c", SCRIPT], {**os.environ, "TERM": "xterm"}
    process = subprocess.Popen(asked, cwd=tmp_path, stdout=theirs, stderr=subprocess.DEVNULL, env=env)
    os.close(theirs)
    shown = b""
    try:
        while part := os.read(ours, 1 << 16):
            shown += part
    except OSError:  # Linux ends a terminal whose other side is closed so
        pass
    os.close(ours)
    assert process.wait() == 0
    text = shown.decode()
    assert all(name in text for name in ("judging", "reading", "training", "sampling", "━"))
    assert "Predicting" not in text and "Epoch" not in text and "judging: 1 of 4" not in text


def test_a_run_names_its_stages_and_leaves_no_blank_lines() -> None:
    heard = undisturbed().folder.with_suffix(".heard")
    out, err = ((heard / f"{name}.txt").read_text() for name in ("out", "err"))
    lines = (out.partition("gender · ")[0] + err).splitlines()  # the table has its own way
    assert all(line.strip() for line in lines) and not {"Predicting", "Epoch"} & {*" ".join(lines).split()}
    stages = ["activations", "labelling", "SAE's training", "SAE's health", "denoising loss recovered", "cards"]
    stages += ["probe of gender", "attribution of gender", "usual activity", "calibrate", "originals", "steer"]
    assert not [stage for stage in stages if not any(line.startswith(f"{stage}: 1") for line in lines)]
    assert {"activations: 8 of 8", "measuring original: 16 of 16"} <= {*lines}
