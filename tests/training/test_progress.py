"""Somebody at a terminal sees a bar with the stage's name; a pipe gets plain lines, few of them and none that are blank."""

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import torch, lightning as L
from difflens.training import progress as shown
shown.EVERY = {every}

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
    return L.Trainer(callbacks=[shown.StageProgress(name)], accelerator="cpu", logger=False, max_epochs=2,
                     enable_checkpointing=False, enable_model_summary=False)
assert list(shown.progress(4, "judging")) == [0, 1, 2, 3]
assert list(shown.progress(iter("ab"), "reading")) == ["a", "b"]
trainer("training").fit(Module(), data)
assert len(trainer("sampling").predict(Module(), data)) == 3
"""


def piped(every: float, folder: Path) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(every=every)], cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "Predicting" not in done.stderr and "Epoch" not in done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize("every", [0, 10])
def test_a_pipe_gets_a_line_now_and_then(tmp_path: Path, every: float) -> None:
    expected = [f"judging: {i} of 4" for i in range(1, 5)] + ["reading: 1", "reading: 2"]
    expected += [f"training: {i} of 6" for i in range(1, 7)] + [f"sampling: {i} of 3" for i in range(1, 4)]
    assert piped(every, tmp_path) == ([] if every else expected)


def test_a_terminal_shows_a_bar_by_the_name_of_the_stage(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    asked = [sys.executable, "-c", SCRIPT.format(every=0)]
    process = subprocess.Popen(
        asked, cwd=tmp_path, stdout=theirs, stderr=subprocess.DEVNULL, env={**os.environ, "TERM": "xterm"}
    )
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
