"""Keep the weights after chosen epochs, beside those after the last."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Checkpoint

from scarcely import checkpoints


def kept_weights(folder: Path, epoch: int) -> Path:
    """Return where the weights after an epoch, counted from 1, are kept."""
    return folder / f"weights-epoch{epoch}.pt"


class KeepWeights(Checkpoint):
    """Write ``weights-epochN.pt`` at the end of each chosen epoch N, counted from 1.

    It comes before the checkpoint that an interrupted stage goes on from: when an epoch is in that
    checkpoint its weights are kept already, and what was killed in between is written again, the same.

    Args:
        folder: of the stage.
        epochs: after which to keep the weights.
        content: of the number of epochs done, what to write: the same as of ``weights.pt``.
    """

    def __init__(
        self, folder: Path, epochs: Collection[int], content: Callable[[int], dict[str, Any]]
    ) -> None:
        self.folder, self.epochs, self.content = folder, epochs, content

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the weights, if this epoch is one of the chosen."""
        done = trainer.current_epoch + 1
        if done in self.epochs and trainer.is_global_zero:
            checkpoints.save(self.content(done), kept_weights(self.folder, done))
