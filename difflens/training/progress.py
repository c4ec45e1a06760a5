"""A trainer's progress, shown as that of every other loop: by the stage's name, in plain lines where output is piped."""

from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ProgressBar

from difflens.store.progress import Progressing


class StageProgress(ProgressBar):
    """A callback in the place of Lightning's own bars.

    Args:
        name: what the stage is called.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self._enabled = True
        self._display: Progressing | None = None

    def disable(self) -> None:
        """Lightning asks for silence on all ranks but the first."""
        self._enabled = False

    def enable(self) -> None:
        """Speak again."""
        self._enabled = True

    def on_train_start(self, trainer: L.Trainer, *_: Any) -> None:
        """Count updates."""
        self._open(trainer.estimated_stepping_batches)

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        """Updates, not batches: a resumed training goes on where it was."""
        if self._display is not None:
            self._display.advance(trainer.global_step - self._display.done)

    def on_predict_start(self, trainer: L.Trainer, *_: Any) -> None:
        """Count batches."""
        self._open(sum(trainer.num_predict_batches))

    def on_predict_batch_end(self, *_: Any) -> None:
        """One more batch."""
        if self._display is not None:
            self._display.advance()

    def teardown(self, *_: Any, **__: Any) -> None:
        """Leave the terminal as it was, after an exception too."""
        if self._display is not None:
            self._display.close()
            self._display = None

    def on_exception(self, *_: Any) -> None:
        """As in the end, which Lightning leaves out then."""
        self.teardown()

    def _open(self, total: float) -> None:
        if self._enabled:
            self._display = Progressing(self.name, int(total) if 0 < total < float("inf") else None)
