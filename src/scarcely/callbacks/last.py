"""Keep one checkpoint: that of the last whole epoch."""

from __future__ import annotations

import time
from pathlib import Path

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Checkpoint


class LastCheckpoint(Checkpoint):
    """Write ``last.ckpt`` at the end of each epoch, but not more often than every few seconds.

    A stage of many short epochs would otherwise spend its time writing. What an interruption
    can cost is therefore the epoch in flight, or ``min_seconds`` of short ones.

    Args:
        path: the file.
        min_seconds: least time between two checkpoints; the last epoch is always written.
    """

    def __init__(self, path: Path, min_seconds: float = 0.0) -> None:
        self.path, self.min_seconds = path, min_seconds
        self._written = -float("inf")

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save, the rows of this epoch included (Lightning calls checkpoint callbacks last)."""
        last = trainer.current_epoch + 1 == trainer.max_epochs
        if last or time.monotonic() - self._written >= self.min_seconds:
            trainer.save_checkpoint(self.path)
            self._written = time.monotonic()
