"""The record of a stage: one row an epoch in metrics.csv, and the same to the loggers."""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from scarcely.errors import DataError
from scarcely.files import write_atomically

Row = dict[str, Any]


def read_rows(path: Path) -> list[Row]:
    """Return the rows of a metrics.csv; numbers as numbers, empty cells left out.

    Raises:
        DataError: the file is damaged.
    """
    if not path.is_file():
        return []
    try:
        with open(path, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except (ValueError, csv.Error) as error:
        raise DataError(
            f"{path} is damaged: {error}",
            where=str(path),
            instead="the same command without this file: what it said of earlier epochs is lost",
        ) from error
    return [{k: _number(v) for k, v in row.items() if k is not None and v not in ("", None)} for row in rows]


def _number(text: str) -> Any:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """Write rows as CSV, atomically; the columns are those of all rows in order of appearance."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns)
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(path, text.getvalue())


def as_scalars(row: Row) -> dict[str, float]:
    """Return the numbers of a row as the loggers get them: ``STAGE/NAME``."""
    return {f"{row['stage']}/{k}": v for k, v in row.items() if k not in ("stage", "step")}


class History(pl.Callback):
    """Write a row an epoch; check every n steps and every epoch that the loss is finite.

    Args:
        path: the CSV file.
        stage: name of the stage.
        earlier: rows of the stages before, kept at the top of the file.
        log_every: steps between two looks at the loss.
    """

    def __init__(self, path: Path, stage: str, earlier: Sequence[Row] = (), log_every: int = 50) -> None:
        self.path, self.stage, self.log_every = path, stage, log_every
        self.earlier = list(earlier)
        self.rows: list[Row] = []
        self.seconds = 0.0
        self._since = time.monotonic()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Forget what was written after the checkpoint that training goes on from."""
        self.rows = [r for r in self.rows if r["epoch"] < trainer.current_epoch]
        self._since = time.monotonic()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Look at the loss now and then: each look waits for the device."""
        if (batch_idx + 1) % self.log_every == 0:
            recent = pl_module.recent(self.log_every)
            self._send(trainer, {f"{self.stage}/{k}/step": v for k, v in recent.items()})

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Write the row of this epoch."""
        now = time.monotonic()
        self.seconds += now - self._since
        self._since = now
        row: Row = {
            "stage": self.stage,
            "epoch": trainer.current_epoch,
            "step": trainer.global_step,
            "seconds": round(self.seconds, 3),
        }
        if trainer.optimizers:
            row["lr"] = trainer.optimizers[0].param_groups[0]["lr"]
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        if scaler is not None:  # 16-mixed: it halves when gradients overflow, and that step is left out
            row["loss_scale"] = scaler.get_scale()
        row.update(pl_module.epoch_summary())
        row.update(pl_module.epoch_metrics())
        row.update(getattr(pl_module, "scores", {}))
        pl_module.scores = {}
        row = {k: v for k, v in row.items() if v == v}  # NaN: nothing to say in this epoch
        self.rows.append(row)
        if trainer.is_global_zero:
            write_rows(self.path, [*self.earlier, *self.rows])
        self._send(trainer, as_scalars(row))

    def _send(self, trainer: pl.Trainer, scalars: dict[str, float]) -> None:
        for logger in trainer.loggers:
            logger.log_metrics(scalars, step=trainer.global_step)

    def state_dict(self) -> dict[str, Any]:
        """Return the rows and the time so far: an interrupted stage keeps both."""
        return {"rows": self.rows, "seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the rows and the time of the checkpoint."""
        self.rows, self.seconds = list(state_dict["rows"]), float(state_dict["seconds"])
