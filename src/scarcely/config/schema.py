"""The keys at the root of the configuration, and those of each group that is not a component."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, get_type_hints

from scarcely.spec import Annotated, Literal, NonNegative, NonNegativeInt, PositiveInt, Range


@dataclass
class Root:
    """What every run has. The YAML gives the reasons; this gives types and ranges."""

    seed: NonNegativeInt
    protocol: Literal["all", "split"]
    pretext: str
    pretext_epoch: PositiveInt | None
    ckpt: str | None
    refine: str | None
    key_map: dict[str, str] | None
    num_clusters: Annotated[int, Range(low=1)] | None
    num_new: PositiveInt | Literal["auto"] | None
    epochs: NonNegativeInt | None
    batch_size: PositiveInt | None
    eval_every: PositiveInt | None
    resume: bool
    fast: bool
    compare_kmeans: bool
    report: bool
    min_matched: Annotated[float, Range(low=0, high=1)]
    embedding_size: NonNegativeInt
    run_dir: str | None
    output_dir: str
    cache_dir: str
    stages: dict
    expected: dict | None
    method: dict
    data: dict
    backbone: dict
    trainer: dict
    logger: dict


@dataclass
class Trainer:
    """How a stage is run (``conf/trainer``)."""

    accelerator: Literal["cpu", "gpu", "auto"]
    devices: PositiveInt
    precision: Literal["32-true", "bf16-mixed", "16-mixed"]
    compile: bool
    sync_batchnorm: bool
    threads: Annotated[int, Range(low=0, high=4096)]
    gradient_clip: Annotated[float, Range(above=0)] | None
    log_every: PositiveInt


@dataclass
class Logger:
    """Where scalars and pictures go beside the CSV (``conf/logger``)."""

    name: Literal["csv", "wandb", "tensorboard", "none"]
    project: str | None = None
    entity: str | None = None
    group: str | None = None
    tags: list[str] | None = None
    offline: bool | None = None
    upload_weights: bool = False
    upload_seconds: PositiveInt = 300


# keys of a method YAML that the run reads itself; all others are constructor arguments
METHOD_KEYS: dict[str, Any] = {
    "_target_": str,
    "name": str,
    "stage": str,
    "before": list[str],
    "task": Literal[
        "clustering", "classification", "pretext", "discovery", "count", "domains", "multilabel", "saliency"
    ],
    "needs": list[Literal["images", "labels", "vectors"]],
    "by_kind": dict[Literal["images", "vectors"], dict],
    "role": Literal["train", "pretext", "labelled", "unlabelled", "mixed"],
    "stages": dict[str, dict],
    "protocol": Literal["all", "split"],
    "discovery": dict,
    "scarce": dict,
    "domains": dict,
    "source": str,
    "reference": Literal["finetune", "none"],
    "decay": NonNegative | Literal["size", "validation"] | dict[str, NonNegative],
    "refined": dict,
    "epochs": NonNegativeInt,
    "batch_size": PositiveInt,
    "keep": list[PositiveInt],
    "rounds": PositiveInt | None,
}

# of these, what stands in for others where the data are such
BRANCHES = ("discovery", "scarce", "domains", "refined")
# and what says which stages there are, which is read before anything is checked
STRUCTURE = ("before", "by_kind", "stages", "source", "reference", *BRANCHES)


def hints(schema: type) -> dict[str, Any]:
    """Return the annotations of a schema, ranges included."""
    return get_type_hints(schema, include_extras=True)


def required(schema: type) -> set[str]:
    """Return the keys that must be there."""
    from dataclasses import MISSING

    return {f.name for f in fields(schema) if f.default is MISSING}
