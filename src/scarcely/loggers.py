"""Loggers beside metrics.csv: scalars while a run trains, scores and pictures at its end."""

from __future__ import annotations

import contextlib
import hashlib
import netrc
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

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
    if name not in _OPEN:  # metrics.csv is written for every run
        yield []
        return
    logger = _OPEN[name](config, folder)
    try:
        yield [logger]
    except BaseException:
        with contextlib.suppress(Exception):  # what went wrong in the run is what matters
            _finish(logger, "failed")
        raise
    _finish(logger, "success")


def send_results(logger: Logger, metrics: Mapping[str, float], figures: Path) -> None:
    """Send the final scores, and the pictures (PNG) of a folder."""
    from pytorch_lightning.loggers import TensorBoardLogger, WandbLogger

    logger.log_metrics({f"final/{name}": value for name, value in metrics.items()})
    pictures = {f"report/{path.stem}": path for path in sorted(figures.glob("*.png"))}
    if isinstance(logger, WandbLogger):
        for name, path in pictures.items():
            logger.log_image(key=name, images=[str(path)])
    elif isinstance(logger, TensorBoardLogger):
        import numpy as np
        from PIL import Image

        for name, path in pictures.items():
            with Image.open(path) as image:
                pixels = np.asarray(image.convert("RGB"))
            logger.experiment.add_image(name, pixels, dataformats="HWC")


def _finish(logger: Logger, status: str) -> None:
    try:
        logger.finalize(status)
    finally:
        if type(logger).__name__ == "WandbLogger":  # the next job of a sweep is a run of its own
            import wandb

            wandb.finish(exit_code=0 if status == "success" else 1)


def _open_tensorboard(config: Mapping[str, Any], folder: Path) -> Logger:
    from pytorch_lightning.loggers import TensorBoardLogger

    try:
        return TensorBoardLogger(folder, name="", version="tensorboard")
    except ModuleNotFoundError as error:
        raise UserError(
            "TensorBoard is not installed", where="logger", instead='pip install "scarcely[tensorboard]"'
        ) from error


def _open_wandb(config: Mapping[str, Any], folder: Path) -> Logger:
    """Open Weights & Biases, offline where there is no account; a resumed run goes on as the same run."""
    from pytorch_lightning.loggers import WandbLogger

    settings = config["logger"]
    mode: Literal["online", "offline"] | None = None  # as W&B's own settings say
    if settings["offline"] is not None:
        mode = "offline" if settings["offline"] else "online"
    elif not (os.environ.get("WANDB_MODE") or _has_wandb_account()):
        mode = "offline"
    name = f"{config['method']['name']}-{config['data']['name']}"
    (folder / "wandb").mkdir(exist_ok=True)  # or W&B writes into the system's temporary folder
    return WandbLogger(
        project=settings["project"],
        group=settings["group"] or name,
        name=f"{name}-seed{config['seed']}",
        id=hashlib.blake2b(str(folder).encode(), digest_size=6).hexdigest(),
        resume="allow",
        save_dir=str(folder),
        # Lightning's own `offline` sets a variable that outlives the run, and comes too late
        mode=mode,
        config={k: v for k, v in config.items() if k not in ("plan", "reference")},
    )


def _has_wandb_account() -> bool:
    """Return whether there is a key for W&B where `wandb login` leaves it."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    path = os.environ.get("NETRC") or ("~/_netrc" if os.name == "nt" else "~/.netrc")
    server = urlsplit(os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai").netloc
    try:
        return server in netrc.netrc(os.path.expanduser(path)).hosts
    except (OSError, netrc.NetrcParseError):
        return False


_OPEN = {"tensorboard": _open_tensorboard, "wandb": _open_wandb}
