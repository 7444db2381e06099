"""Loggers beside metrics.csv: scalars while a run trains, scores and pictures at its end."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scarcely.errors import UserError

if TYPE_CHECKING:
    from pytorch_lightning.loggers import Logger


_CURRENT: list[Any] = []


@contextlib.contextmanager
def logging_to(loggers: list[Any]) -> Iterator[None]:
    """Send the scalars of all stages inside to these loggers."""
    _CURRENT[:] = loggers
    try:
        yield
    finally:
        _CURRENT.clear()


def current_loggers(rank: int = 0) -> list[Any]:
    """Return the loggers of the run; none on the other ranks."""
    return list(_CURRENT) if rank == 0 else []


def send_rows(rows: Sequence[Mapping[str, Any]]) -> None:
    """Send the record of a stage that was trained before to those loggers that know what they have of it."""
    for logger in current_loggers():
        if hasattr(logger, "log_rows"):
            logger.log_rows(rows)


@contextlib.contextmanager
def open_loggers(config: Mapping[str, Any], folder: Path) -> Iterator[list[Logger]]:
    """Open the loggers of a run, and finish them whatever happens.

    Args:
        config: of the run; ``logger.name`` is csv, none, tensorboard or wandb.
        folder: of the run, where their files go.

    Raises:
        UserError: the logger's package is not installed.
    """
    name = config["logger"]["name"]
    logger = _OPEN[name](config, folder) if name in _OPEN else None
    if logger is None:  # metrics.csv is written for every run
        yield []
        return
    with _errors_told_once():
        try:
            yield [logger]
        except BaseException as error:
            with contextlib.suppress(Exception):  # what went wrong in the run is what matters
                _finish(
                    logger, 255 if isinstance(error, KeyboardInterrupt) else 1
                )  # 255: W&B calls it killed
            raise
        _finish(logger, 0)


@contextlib.contextmanager
def _errors_told_once() -> Iterator[None]:
    """Leave it to the run to tell errors of TensorBoard's thread, which hands them on and prints them too."""
    before = threading.excepthook

    def hook(failed: threading.ExceptHookArgs) -> None:
        if not type(failed.thread).__module__.startswith("tensorboard."):
            before(failed)

    threading.excepthook = hook
    try:
        yield
    finally:
        threading.excepthook = before


def send_results(logger: Logger, results: Mapping[str, Any], folder: Path) -> None:
    """Send the final scores and the pictures of the report.

    Args:
        logger: of the run.
        results: content of results.json.
        folder: of the run.
    """
    if hasattr(logger, "log_results"):
        logger.log_results(results, folder)
        return
    import numpy as np
    from PIL import Image

    logger.log_metrics({f"final/{name}": value for name, value in results["metrics"].items()})
    for path in sorted((folder / "figures").glob("*.png")):
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB"))
        logger.experiment.add_image(f"report/{path.stem}", pixels, dataformats="HWC")  # type: ignore[attr-defined]


def _finish(logger: Any, exit_code: int) -> None:
    if hasattr(logger, "finish"):
        logger.finish(exit_code)
    else:
        logger.finalize("failed" if exit_code else "success")


def _open_tensorboard(config: Mapping[str, Any], folder: Path) -> Logger:
    from pytorch_lightning.loggers import TensorBoardLogger

    try:
        return TensorBoardLogger(folder, name="", version="tensorboard")
    except ModuleNotFoundError as error:
        raise UserError(
            "TensorBoard is not installed", where="logger", instead='pip install "scarcely[tensorboard]"'
        ) from error


def _open_wandb(config: Mapping[str, Any], folder: Path) -> Logger | None:
    from scarcely.wandb_run import open_run

    return open_run(config, folder)


_OPEN = {"tensorboard": _open_tensorboard, "wandb": _open_wandb}
