"""The domains of a run: their data, and what a stage on them is told."""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from hydra.utils import get_class, instantiate

from scarcely import checkpoints
from scarcely.data.domain_set import DomainSet
from scarcely.data.together import Mixed, Together
from scarcely.errors import ConfigError
from scarcely.job import Job
from scarcely.methods.base import Method, Predictions
from scarcely.methods.domain_prediction import half_as_deep
from scarcely.methods.domains import DomainMethod

DECAYS = (1e-4, 5e-4, 2e-3)  # of the papers; decay=validation chooses among them
_BY_SIZE = (
    (7_000, 2e-3),
    (30_000, 5e-4),
)  # training images below which a decay is the papers', else the least
_DESIGN = (  # settings that say which adapters a network has, and what is decayed
    *("kind", "where", "residual", "init", "dropout", "source_with_adapters"),
    *("norm_decay", "head_decay"),
)
T = TypeVar("T", bound=Together)


@dataclass
class Domains:
    """The domains of a run, each an ordinary data set, read when it is needed.

    Attributes:
        config: of the run.
        names: all domains that are trained on, the source first if there is one.
        source: the one whose network the others start from; None without.
        accelerator: ``cuda`` or ``cpu``.
        source_weights: of a checkpoint of ours that stands in for the source's network; None without.
    """

    config: dict[str, Any]
    names: tuple[str, ...]
    source: str | None
    accelerator: str
    source_weights: Path | None = None
    _data: dict[tuple[str, str], DomainSet] = field(default_factory=dict)

    @classmethod
    def of(cls, config: dict[str, Any], data: DomainSet, accelerator: str) -> Domains:
        """Name the domains of a run. A checkpoint of ours says itself which domain it is of.

        Raises:
            ConfigError: it is of another source than the one given; or few labels, which no method of several
                domains takes.
        """
        source, weights = data.source, None
        if config["ckpt"] is not None:
            weights = checkpoints.find(config["ckpt"])
            content = checkpoints.load(weights)
            job = content.get("job") if isinstance(content, dict) else None
            own = job["data"].get("domain") if isinstance(job, dict) else None
            given = config["data"]["source"]
            if own not in data.domain_names:
                source, weights = None if given == "auto" else source, None
            elif given not in ("auto", own):
                raise ConfigError(
                    f"ckpt={config['ckpt']} was trained on {own}, and the source is to be {given}",
                    where="ckpt, data.source",
                    instead=f"data.source={own}",
                )
            else:
                source = own
        others = tuple(name for name in data.domain_names if name != source)
        names = others if source is None else (source, *others)
        return cls(config, names, source, accelerator, weights)

    @property
    def others(self) -> tuple[str, ...]:
        """All but the source."""
        return tuple(name for name in self.names if name != self.source)

    def settings(self, name: str, scored: str | None = None) -> dict[str, Any]:
        """Return the configuration of the data of a domain, as a stage is told it."""
        own = self.config["data"]
        return own | {"domain": name, "scored": scored or own["scored"]}

    def data(self, name: str, scored: str | None = None) -> DomainSet:
        """Return a domain, read."""
        settings = self.settings(name, scored)
        key = (name, settings["scored"])
        if key not in self._data:
            found: DomainSet = instantiate(settings, _convert_="all")
            found.prepare_data()
            found.setup()
            self._data[key] = found
        return self._data[key]

    def release(self, *names: str) -> None:
        """Let go of what domains have on the device, where all of them might be too much."""
        for (name, _), data in self._data.items():
            if name in names:
                data.release()
        if self.accelerator == "cuda":
            gc.collect()  # a trainer and its loops hold each other, and the loaders

    def job(self, method: dict[str, Any], name: str, scored: str | None = None) -> Job:
        """Return a stage of a domain."""
        data = self.data(name, scored)
        source = self.data(self.source) if self.source is not None and name != self.source else None
        own = dict(method)
        if "decay" in own:
            own["decay"] = decay_of(own["decay"], name, len(data.pool("train", "split")))
        return self._job(
            name=f"{name} {method['name']}",
            method=own,
            data=self._filled(name, scored),
            num_classes=data.num_classes,
            num_source=source.num_classes if source is not None else 0,
        )

    def round_robin(self, method: dict[str, Any], following: Mapping[str, Any]) -> tuple[Job, Together]:
        """Return a stage of all domains together, and their data.

        Args:
            method: settings of the stage.
            following: settings of the stage whose adapters are trained.
        """
        sizes = {name: len(self.data(name).pool("train", "split")) for name in self.names}
        adapters = design_of(following)
        adapters["decay"] = {
            name: decay_of(following.get("decay", "size"), name, n) for name, n in sizes.items()
        }
        told = {
            "adapters": adapters,
            "domain_classes": {name: self.data(name).num_classes for name in self.names},
            "source_domain": self.source,
        }
        settings, data = self._all_of(Together, self.names, method)
        return self._job(name=method["name"], method=method | told, data=settings, num_classes=0), data

    def prediction(self, method: dict[str, Any], names: Sequence[str]) -> tuple[Job, Mixed]:
        """Return the stage that learns to tell domains apart, and its data."""
        settings, data = self._all_of(Mixed, names, method)
        backbone = half_as_deep(self.config["backbone"])
        job = self._job(
            name=method["name"], method=method, data=settings, num_classes=len(names), backbone=backbone
        )
        return job, data

    def _all_of(
        self, kind: type[T], names: Sequence[str], method: Mapping[str, Any]
    ) -> tuple[dict[str, Any], T]:
        """Return several domains as one data set: as a stage is told it, and itself."""
        told = {"name": self.config["data"]["name"], "rounds": method.get("rounds")}
        each = [self._filled(name) for name in names]
        data = kind(each=[self.data(name) for name in names], **told)
        return {"_target_": f"{kind.__module__}.{kind.__name__}", "each": each, **told}, data

    def _job(self, **settings: Any) -> Job:
        config = self.config
        settings = {"backbone": config["backbone"], **settings}
        return Job(
            **settings,
            trainer=config["trainer"],
            seed=config["seed"],
            protocol="split",
            num_clusters=1,
            min_matched=config["min_matched"],
            fast=config["fast"],
            eval_every=config["eval_every"],
            named_by="ckpt",
        )

    def _filled(self, name: str, scored: str | None = None) -> dict[str, Any]:
        own = self.data(name, scored).augmentation_settings()
        return self.settings(name, scored) | {"augmentation": self.config["data"]["augmentation"] | own}

    def predict(self, method: Method, name: str, scored: str | None = None) -> Predictions:
        """Return what a method says of the part of a domain that is scored."""
        return method.to(self.accelerator).predict_all(self._batches(name, scored))

    def source_accuracy(self, method: Method) -> float | None:
        """Return the accuracy on the source of the network of another domain; None if it cannot tell."""
        if self.source is None or not isinstance(method, DomainMethod):
            return None
        hits, count = 0.0, 0
        method.to(self.accelerator).eval()
        with torch.no_grad():
            for batch in self._batches(self.source):
                scores = method.source_logits(batch.views[0])
                if scores is None:
                    return None
                hits += float((scores.argmax(dim=1) == batch.labels).sum())
                count += len(batch.labels)
        return hits / count

    def _batches(self, name: str, scored: str | None = None) -> Any:
        data = self.data(name, scored)
        return data.evaluation_loader("test", "split", batch_size=256, device=torch.device(self.accelerator))


def decay_of(wanted: float | str | Mapping[str, float], name: str, samples: int) -> float:
    """Return the weight decay of a domain's adapters.

    By the size of the training set it is that which the papers give their nine domains (chapter 4, section
    4.1): 0.002 to Aircraft, DTD and Flowers, 0.0001 to CIFAR-100, GTSRB and SVHN, 0.0005 to those between.

    Args:
        wanted: a number for all domains, numbers by name, or a way to choose one; a domain without a number
            has one by its size.
        name: of the domain.
        samples: its training images.
    """
    if isinstance(wanted, Mapping) and name in wanted:
        return float(wanted[name])
    if isinstance(wanted, int | float):
        return float(wanted)
    return next((decay for size, decay in _BY_SIZE if samples < size), min(DECAYS))


def is_a(method: Mapping[str, Any], kind: type) -> bool:
    """Return whether settings are those of a method of a kind."""
    return "_target_" in method and issubclass(get_class(method["_target_"]), kind)


def design_of(method: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a method that say which adapters its network has, and what is decayed."""
    return {key: method[key] for key in _DESIGN if key in method}
