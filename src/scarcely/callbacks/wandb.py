"""Weights & Biases: one run a folder, offline where there is no account."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def make_wandb(config: Mapping[str, Any], folder: Path) -> Any:
    """Return the logger of a run; a resumed run goes on in the same W&B run."""
    import wandb
    from pytorch_lightning.loggers import WandbLogger

    settings = config["logger"]
    offline = settings["offline"]
    if offline is None:
        offline = not (os.environ.get("WANDB_API_KEY") or wandb.api.api_key)
    name = f"{config['method']['name']}-{config['data']['name']}"
    identity = hashlib.blake2b(str(folder).encode(), digest_size=6).hexdigest()
    (folder / "wandb").mkdir(exist_ok=True)
    return WandbLogger(
        project=settings["project"],
        group=settings["group"] or name,
        name=f"{name}-seed{config['seed']}",
        id=identity,
        resume="allow",
        save_dir=str(folder),
        offline=bool(offline),
        config={k: v for k, v in config.items() if k != "plan"},
    )
