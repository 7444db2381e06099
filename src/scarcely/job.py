"""What a stage is told: all that shapes its weights, as plain values, and the hash of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import torch

from scarcely import __version__
from scarcely.config.signature import signature_of, source_of

# that the run knows once the data are read
SIZES = ("num_clusters", "num_classes", "num_known", "num_new", "num_source")
# keys of a method that say which stages there are and what data; what came of them is in the job
RESOLVED = (
    "name",
    "stage",
    "before",
    "task",
    "needs",
    "by_kind",
    "stages",
    "protocol",
    "discovery",
    "scarce",
    "domains",
    "source",
    "reference",
    "refined",
)


@dataclass(frozen=True)
class Job:
    """All that shapes a stage, as plain values: the ranks of a stage read it from a file.

    Attributes:
        name: of the stage.
        method, backbone, data, trainer: their configuration.
        seed: of the run.
        protocol: which samples are trained on.
        num_clusters, num_classes, num_known, num_new, num_source: sizes of the heads, as the constructor asks
            for them; the last are the classes of the domain that the network comes from.
        inherited: weights file that the backbone starts from, or None.
        named_by: the setting that named them, for messages.
        whole: the inherited weights are those of a whole method, head included.
        min_matched: smallest share of the network that they must fill.
        key_map: prefixes of their names, and what stands there in this network.
        fast: two batches an epoch.
        eval_every: epochs between scores.
        snapshots: unlabelled samples whose features are kept while the stage trains, for a picture.
    """

    name: str
    method: dict[str, Any]
    backbone: dict[str, Any]
    data: dict[str, Any]
    trainer: dict[str, Any]
    seed: int
    protocol: Literal["all", "split"]
    num_clusters: int
    num_classes: int
    num_known: int = 0
    num_new: int = 0
    num_source: int = 0
    inherited: str | None = None
    named_by: str = "pretext"
    whole: bool = False
    min_matched: float = 0.5
    key_map: dict[str, str] | None = None
    fast: bool = False
    eval_every: int | None = None
    snapshots: int = 0

    @property
    def epochs(self) -> int:
        """Epochs of the stage."""
        return int(self.method.get("epochs", 0))

    @property
    def role(self) -> Any:
        """Pool of samples that the stage trains on."""
        return self.method.get("role", "train")

    @property
    def keep(self) -> list[int]:
        """Epochs after which the weights are kept, beside those after the last."""
        return sorted(set(self.method.get("keep") or ()))

    @property
    def task(self) -> str:
        """What the stage is for, as its YAML says."""
        return str(self.method.get("task", ""))

    @property
    def sizes(self) -> dict[str, int]:
        """The sizes that the method's constructor asks for."""
        wanted = signature_of(self.method["_target_"]).parameters
        return {size: getattr(self, size) for size in SIZES if size in wanted}

    def key(
        self, fingerprint: str, inherited_key: str, accelerator: str, chosen_by: Sequence[str] = ()
    ) -> str:
        """Return the hash of everything that shapes the trained weights.

        Args:
            fingerprint: of the samples that the stage is trained on.
            inherited_key: of the stage before, or of a checkpoint.
            accelerator: ``cuda`` or ``cpu``.
            chosen_by: settings of the data that only choose samples, which the fingerprint tells.
        """
        content = {k: v for k, v in asdict(self).items() if k not in SIZES} | self.sizes
        for irrelevant in ("inherited", "named_by", "min_matched", "snapshots", "eval_every"):
            content.pop(irrelevant)
        arguments = signature_of(self.method["_target_"]).parameters
        content["method"] = {k: v for k, v in self.method.items() if k not in RESOLVED or k in arguments}
        content["method"].pop("keep", None)
        content |= {"keep": self.keep} if self.keep else {}  # a stage without these files is another one
        elsewhere = ("root", "labelled", "unlabelled", "resident", "cache_dir", "workers", "download")
        content["data"] = _without(self.data, (*elsewhere, *chosen_by))
        for how in ("log_every", "accelerator"):  # of the accelerator it matters what was found
            content["trainer"].pop(how)
        content |= {
            "fingerprint": fingerprint,
            "inherited": inherited_key,
            "accelerator": accelerator,
            "torch": torch.__version__,
            "code": source_digest(),
            **foreign_digests([self.method, self.backbone, self.data]),
        }
        text = json.dumps(content, sort_keys=True, default=str)
        return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()


def _without(values: Any, keys: Sequence[str]) -> Any:
    """Leave out keys of a configuration, of the data sets within it too."""
    if isinstance(values, dict):
        return {k: _without(v, keys) for k, v in values.items() if k not in keys}
    return [_without(v, keys) for v in values] if isinstance(values, list) else values


@lru_cache(maxsize=1)
def source_digest() -> str:
    """Return a hash of the code that training depends on: a changed loss must not find an old stage."""
    here = Path(__file__).parent
    digest = hashlib.blake2b(__version__.encode(), digest_size=8)
    parts = (
        "adapters/*.py",
        "backbones/*.py",
        "data/*.py",
        "functional/*.py",
        "methods/*.py",
        "stages.py",
        "seeds.py",
        "checkpoints.py",
    )
    for path in (path for part in parts for path in sorted(here.glob(part))):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def foreign_digests(values: Any) -> dict[str, str]:
    """Return a hash of each module outside of this package that a configuration takes a class from."""
    if isinstance(values, list):
        return {k: v for value in values for k, v in foreign_digests(value).items()}
    if not isinstance(values, dict):
        return {}
    target = str(values.get("_target_", "scarcely."))
    path = None if target.startswith("scarcely.") else source_of(target)
    own = {} if path is None else {target: hashlib.blake2b(path.read_bytes(), digest_size=8).hexdigest()}
    return own | foreign_digests(list(values.values()))
