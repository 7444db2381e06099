"""Keep the features of a few samples at the start, in the middle and at the end of a stage."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch

from scarcely.data.augment import Augmentation
from scarcely.data.loader import DeviceLoader
from scarcely.data.samples import Samples
from scarcely.files import write_atomically
from scarcely.seeds import derive_seed


class Snapshots(pl.Callback):
    """Write ``snapshots.npz``: the features of the same samples before, halfway through and after training.

    The file holds ``epochs`` (S,), how many were done at each snapshot, ``features`` (S, M, D) float32, and
    ``index`` (M,), the rows of the samples. A stage that goes on from a checkpoint keeps the snapshots
    before it. Training is not changed: the modules keep their modes, the random numbers their state.

    Args:
        path: the file.
        samples: to choose from.
        augmentation: of the data, for its normalisation.
        count: samples chosen, at most.
        epochs: of the stage.
        seed: of the choice.
        batch_size: samples at a time.
    """

    def __init__(
        self,
        path: Path,
        samples: Samples,
        augmentation: Augmentation,
        *,
        count: int,
        epochs: int,
        seed: int = 0,
        batch_size: int = 256,
    ) -> None:
        self.path, self.samples, self.augmentation = path, samples, augmentation
        self.batch_size = batch_size
        self.moments = {0, epochs // 2, epochs}
        rng = np.random.default_rng(derive_seed(seed, "snapshots"))
        self.index = np.sort(rng.permutation(len(samples))[:count])
        self.kept: dict[int, np.ndarray] = {}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take over what was kept before the checkpoint that training goes on from."""
        if trainer.is_global_zero:
            found = self._read() if trainer.current_epoch else {}
            self.kept = {epoch: rows for epoch, rows in found.items() if epoch <= trainer.current_epoch}

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Look at the network before the first epoch, and before the one in the middle."""
        self._take(trainer, pl_module, trainer.current_epoch)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Look at the network after the last epoch (its checkpoint is written after this)."""
        if trainer.current_epoch + 1 == max(self.moments):
            self._take(trainer, pl_module, trainer.current_epoch + 1)

    def _take(self, trainer: pl.Trainer, module: Any, epoch: int) -> None:
        if epoch not in self.moments or not trainer.is_global_zero or not len(self.index):
            return
        loader = DeviceLoader.evaluation(
            self.samples.select(torch.from_numpy(self.index)),
            self.augmentation,
            batch_size=self.batch_size,
            device=module.device,
        )
        precision = trainer.precision_plugin
        modes = {part: part.training for part in module.modules()}
        devices = [module.device] if module.device.type == "cuda" else []
        with torch.random.fork_rng(devices), precision.val_step_context():
            batches = (precision.convert_input(batch) for batch in loader)
            features = module.predict_all(batches, lambda _: None).features
        for part, mode in modes.items():
            part.training = mode
        self.kept[epoch] = features.flatten(1).numpy()
        self._write()

    def _write(self) -> None:
        epochs = sorted(self.kept)
        arrays: dict[str, np.ndarray] = {
            "epochs": np.array(epochs),
            "features": np.stack([self.kept[epoch] for epoch in epochs]),
            "index": self.index,
        }
        write_atomically(self.path, lambda file: np.savez_compressed(file, **arrays))  # type: ignore[arg-type]

    def _read(self) -> dict[int, np.ndarray]:
        """Return the features by epoch; none where there is no such file, or one of other samples."""
        try:
            with np.load(self.path, allow_pickle=False) as archive:
                if not np.array_equal(archive["index"], self.index):
                    return {}
                return dict(zip(archive["epochs"].tolist(), archive["features"], strict=True))
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            return {}  # a picture less is no reason to stop a training
