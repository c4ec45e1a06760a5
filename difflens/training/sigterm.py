"""SIGTERM in a distributed run."""

import signal

import lightning as L


class OwnSigterm(L.Callback):
    """Keeps the program's own answer to SIGTERM while several processes work together.

    Lightning's asks the other ranks from inside the handler, while they wait for the step that it interrupted: no end.
    """

    def __init__(self) -> None:
        self.answer = signal.getsignal(signal.SIGTERM)

    def on_train_start(self, trainer: L.Trainer, _: L.LightningModule) -> None:
        """Lightning has registered its own by now, and puts this one back when it is done."""
        self._answer(trainer)

    def on_predict_start(self, trainer: L.Trainer, _: L.LightningModule) -> None:
        """As when training starts."""
        self._answer(trainer)

    def _answer(self, trainer: L.Trainer) -> None:
        if trainer.world_size > 1:
            signal.signal(signal.SIGTERM, self.answer)
