"""One progress bar a stage: epochs, loss, score, time left."""

from __future__ import annotations

import time
from typing import Any

import pytorch_lightning as pl


class Progress(pl.Callback):
    """A rich progress bar on a terminal, a line now and then elsewhere (a log file of a cluster).

    Args:
        title: name of the stage.
        line_seconds: least time between two lines where there is no terminal.
    """

    def __init__(self, title: str, line_seconds: float = 10.0) -> None:
        self.title, self.line_seconds = title, line_seconds
        self._bar: Any = None
        self._text = ""
        self._line = 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Open the bar."""
        if not trainer.is_global_zero:
            return
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )
        from rich.progress import Progress as Bar

        console = Console(stderr=True)
        self._line = time.monotonic()
        if not console.is_terminal:
            return
        self._bar = Bar(
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("epochs"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[text]}"),
            console=console,
            refresh_per_second=5,
        )
        self._bar.start()
        self._task = self._bar.add_task(
            self.title, total=trainer.max_epochs, completed=trainer.current_epoch, text=""
        )

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Move the bar within an epoch."""
        if self._bar is not None and trainer.num_training_batches:
            done = trainer.current_epoch + (batch_idx + 1) / trainer.num_training_batches
            self._bar.update(self._task, completed=round(done, 2))

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Show the numbers of the epoch."""
        if not trainer.is_global_zero:
            return
        callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
        history = next((c for c in callbacks if type(c).__name__ == "History"), None)
        row = history.rows[-1] if history is not None and history.rows else {}
        shown = [f"{key} {row[key]:.3f}" for key in ("loss", "rotation/accuracy", "accuracy") if key in row]
        for key, name in (("acc", "ACC"), ("new/acc", "ACC of new classes")):
            if key in row:
                self._text = f"{name} {row[key]:.1%}"
        text = "  ".join([*shown, self._text])
        if self._bar is not None:
            self._bar.update(self._task, completed=trainer.current_epoch + 1, text=text)
            return
        now, last = time.monotonic(), trainer.current_epoch + 1 == trainer.max_epochs
        if last or now - self._line >= self.line_seconds:
            self._line = now
            print(f"{self.title}: epoch {trainer.current_epoch + 1}/{trainer.max_epochs}  {text}", flush=True)

    def teardown(self, trainer: pl.Trainer, pl_module: Any, stage: str) -> None:
        """Close the bar, also after an error."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
