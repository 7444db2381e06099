"""A run over several domains: the source's network, then each other domain from it (chapters 3 and 4)."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra.utils import get_class, instantiate

from scarcely import checkpoints, stages
from scarcely.callbacks.history import write_rows
from scarcely.data.decathlon import Decathlon
from scarcely.errors import ConfigError, UserError
from scarcely.evaluation import accuracy
from scarcely.files import write_atomically
from scarcely.folder import RunFolder
from scarcely.job import Job
from scarcely.loggers import logging_to, open_loggers, send_results
from scarcely.methods.base import Method, Predictions
from scarcely.methods.domains import DomainMethod
from scarcely.metrics.decathlon import MAX_ERRORS, decathlon_score, max_errors_of
from scarcely.reports.evidence import Evidence
from scarcely.reports.html import write_report
from scarcely.stages import Trained

DECAYS = (1e-4, 5e-4, 2e-3)  # of the papers; decay=validation chooses among them
_BY_SIZE = (
    (7_000, 2e-3),
    (30_000, 5e-4),
)  # training images below which a decay is the papers', else the least
SOURCE = "source"  # name of the stage that trains on the source domain


@dataclass
class Domains:
    """The domains of a run, each an ordinary data set, read when it is needed.

    Attributes:
        config: of the run.
        names: all domains that are trained on, the source first if there is one.
        source: the one whose network the others start from; None without.
        accelerator: ``cuda`` or ``cpu``.
    """

    config: dict[str, Any]
    names: tuple[str, ...]
    source: str | None
    accelerator: str
    _data: dict[tuple[str, str], Decathlon] = field(default_factory=dict)

    @classmethod
    def of(cls, config: dict[str, Any], data: Decathlon, accelerator: str) -> Domains:
        """Name the domains of a run; the source is one of them where a network is trained on it."""
        source = data.source
        others = tuple(name for name in data.domain_names if name != source)
        return cls(config, others if source is None else (source, *others), source, accelerator)

    @property
    def others(self) -> tuple[str, ...]:
        """All but the source."""
        return tuple(name for name in self.names if name != self.source)

    def settings(self, name: str, scored: str | None = None) -> dict[str, Any]:
        """Return the configuration of the data of a domain, as a stage is told it."""
        own = self.config["data"]
        return own | {"domain": name, "scored": scored or own["scored"]}

    def data(self, name: str, scored: str | None = None) -> Decathlon:
        """Return a domain, read."""
        settings = self.settings(name, scored)
        key = (name, settings["scored"])
        if key not in self._data:
            found: Decathlon = instantiate(settings, _convert_="all")
            found.prepare_data()
            found.setup()
            self._data[key] = found
        return self._data[key]

    def job(self, method: dict[str, Any], name: str, scored: str | None = None) -> Job:
        """Return a stage of a domain."""
        config, data = self.config, self.data(name, scored)
        source = self.data(self.source) if self.source is not None and name != self.source else None
        own = dict(method)
        if "decay" in own:
            own["decay"] = decay_of(own["decay"], name, len(data.pool("train", "split")))
        return Job(
            name=f"{name} {method['name']}",
            method=own,
            backbone=config["backbone"],
            data=self.settings(name, scored) | {"augmentation": self._augmentation(data)},
            trainer=config["trainer"],
            seed=config["seed"],
            protocol="split",
            num_clusters=1,
            num_classes=data.num_classes,
            num_source=source.num_classes if source is not None else 0,
            min_matched=config["min_matched"],
            fast=config["fast"],
            eval_every=config["eval_every"],
        )

    def _augmentation(self, data: Decathlon) -> dict[str, Any]:
        return self.config["data"]["augmentation"] | data.augmentation_settings()

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


@dataclass
class Chain:
    """Stages from the source to every domain.

    Attributes:
        domains: what is trained on.
        plan: stages in order; that of the source first, where there is one.
        ckpt: what stands in for the source's network.
        done: all stages that were trained or found, in order.
        failed: domains that could not be trained, and why.
    """

    domains: Domains
    plan: list[dict[str, Any]]
    ckpt: str | None = None
    done: list[Trained] = field(default_factory=list)
    failed: dict[str, Exception] = field(default_factory=dict)

    @property
    def source_method(self) -> dict[str, Any] | None:
        """How the source is trained here, with adapters its convolutions too; None if it is not trained."""
        first = self.plan[0]
        if first["name"] != SOURCE or self.domains.source is None:
            return None
        return first["method"] | ({"shared": True} if "shared" in first["method"] else {})

    @property
    def each(self) -> list[dict[str, Any]]:
        """The methods that are trained on each domain."""
        return [stage["method"] for stage in self.plan if stage["name"] != SOURCE]

    @property
    def targets(self) -> tuple[str, ...]:
        """The domains that these are trained on: without a network of the source, the source too."""
        starts = self.source_method is not None or self.ckpt is not None
        return self.domains.others if starts else self.domains.names

    def check(self) -> None:
        """Look at every stage of every domain, before any training.

        Raises:
            UserError: settings that do not fit.
        """
        if self.source_method is not None:
            assert self.domains.source is not None
            self._check(self.domains.job(self.source_method, self.domains.source))
        if not self.targets:
            raise ConfigError(
                f"{self.domains.source} is the source, and there is no other domain",
                where="data.domains, data.source",
                instead="more domains, or data.source=null",
            )
        for method in self.each:
            decay = method.get("decay")
            unknown = [n for n in decay if n not in self.targets] if isinstance(decay, dict) else []
            if unknown:
                raise ConfigError(
                    f"{unknown[0]!r} is no domain that is trained on",
                    where="method.decay",
                    instead=", ".join(self.targets),
                )
            for name in self.targets:
                job = self.domains.job(method, name)
                own_start = method is self.each[0]
                self._check(replace(job, inherited=self.ckpt if own_start else None, named_by="ckpt"))

    def _check(self, job: Job) -> None:
        data = self.domains.data(job.data["domain"])
        size = min(job.method.get("batch_size", 1), len(data.pool("train", "split")))
        stages.build_method(job, data.input_shape).check(size)

    def run(self) -> dict[str, Trained]:
        """Train what is not in the cache, and return the last stage of every domain.

        A domain that cannot be trained is left out, and told in ``failed``; the others go on.
        """
        start: tuple[str | None, str] = (self.ckpt, checkpoints.content_key(self.ckpt))
        if self.source_method is not None:
            assert self.domains.source is not None
            source = self._stage(self.domains.job(self.source_method, self.domains.source), *start)
            start = (str(source.weights), source.key)
        starts = dict.fromkeys(self.targets, start)
        trained: dict[str, Trained] = {}
        for method in self.each:
            own = method
            if hasattr(get_class(method["_target_"]), "join") and trained:
                starts, own = self._joined(method, trained)
            for name in starts:
                try:
                    job = self._with_decay(own, name, *starts[name])
                    trained[name] = self._stage(job, *starts[name])
                except Exception as error:  # the others are worth going on for
                    self._fail(name, error)
                    trained.pop(name, None)
            starts = {name: (str(t.weights), t.key) for name, t in trained.items()}
        return trained

    def _joined(
        self, method: dict[str, Any], trained: Mapping[str, Trained]
    ) -> tuple[dict[str, tuple[str | None, str]], dict[str, Any]]:
        """Make what a stage starts from of what all domains have learnt before it."""
        states = {name: checkpoints.load(stage.weights)["state_dict"] for name, stage in trained.items()}
        stage: Any = get_class(method["_target_"])
        starts, settings, report = stage.join(states, method)
        print(report, file=sys.stderr, flush=True)
        told = json.dumps([{name: t.key for name, t in trained.items()}, method], sort_keys=True)
        key = hashlib.blake2b(told.encode(), digest_size=12).hexdigest()
        folder = Path(self.domains.config["cache_dir"]).expanduser() / "joined" / key
        folder.mkdir(parents=True, exist_ok=True)
        for name, state in starts.items():
            checkpoints.save({"state_dict": state}, folder / f"{name}.pt")
        return {name: (str(folder / f"{name}.pt"), key) for name in starts}, method | settings

    def _stage(self, job: Job, inherited: str | None, before: str) -> Trained:
        data = self.domains.data(job.data["domain"], job.data["scored"])
        job = replace(job, inherited=inherited, named_by="ckpt")
        samples = data.pool(job.role, job.protocol).fingerprint(labels=True)
        key = job.key(samples, before, self.domains.accelerator, data.split_keys)
        cache = Path(self.domains.config["cache_dir"]).expanduser()
        found = stages.cached_stage(job, cache, data, self.domains.accelerator, key, [])
        how = "found in the cache" if found.cached else f"trained in {found.seconds:.0f} s"
        print(f"{job.name}: {how}", file=sys.stderr, flush=True)
        self.done.append(found)
        return found

    def _with_decay(self, method: dict[str, Any], name: str, inherited: str | None, before: str) -> Job:
        """Return the job of a domain, its weight decay chosen on the validation part where that is asked."""
        if method.get("decay") != "validation":
            return self.domains.job(method, name)
        found = {}
        for decay in DECAYS:
            job = self.domains.job(method | {"decay": decay}, name, scored="val")
            trained = self._stage(replace(job, name=f"{job.name} decay {decay:g}"), inherited, before)
            found[decay] = accuracy(self.domains.predict(load(trained), name, "val"))
        best = max(found, key=lambda decay: found[decay])
        told = ", ".join(f"{decay:g} {value:.1%}" for decay, value in found.items())
        print(f"{name}: weight decay {best:g} on the validation part ({told})", file=sys.stderr, flush=True)
        return self.domains.job(method | {"decay": best}, name)

    def _fail(self, name: str, error: Exception) -> None:
        self.failed[name] = error
        print(f"{name}: failed, the other domains go on\n{error}", file=sys.stderr, flush=True)


def load(trained: Trained) -> Method:
    """Return the method of a finished stage with its weights, in eval mode."""
    content = checkpoints.load(trained.weights)
    method = stages.build_method(Job(**content["job"]), tuple(content["input_shape"]), inherit=False)
    method.load_state_dict(content["state_dict"])
    return method.eval()


def train_domains(
    config: dict[str, Any], folder: RunFolder, data: Decathlon, accelerator: str
) -> dict[str, Any]:
    """Train, score and report a run over several domains.

    Args:
        config: checked; its method has the task ``domains``.
        folder: of the run.
        data: the set of domains, none of them chosen.
        accelerator: ``cuda`` or ``cpu``.

    Raises:
        UserError: settings that do not fit, before any training; or domains that could not be trained,
            after all others: what was trained is kept.
    """
    domains = Domains.of(config, data, accelerator)
    chain = Chain(domains, config["plan"], config["ckpt"])
    chain.check()
    published = set(domains.names) <= set(MAX_ERRORS)
    reference = Chain(domains, config["reference"], config["ckpt"]) if "reference" in config else None
    if reference is not None and not published:
        reference.check()
    with folder.opened(config), open_loggers(config, folder.path) as loggers, logging_to(loggers):
        trained = chain.run()
        rows = _score(domains, chain, trained, folder.path)
        write_rows(folder.path / "metrics.csv", [row for stage in chain.done for row in stage.rows])
        _require_all(chain.failed)
        errors = {row["name"]: 1 - row["accuracy"] for row in rows}
        if published:
            limits: dict[str, float] | None = dict(MAX_ERRORS)
        elif config["method"]["name"] == "finetune":
            limits = max_errors_of(errors)
        elif reference is not None:
            limits = max_errors_of(_reference_errors(domains, reference))
        else:
            limits = None
        metrics = {f"domain/{row['name']}/accuracy": row["accuracy"] for row in rows}
        metrics |= {
            f"domain/{row['name']}/source_accuracy": row["source_accuracy"]
            for row in rows
            if row.get("source_accuracy") is not None
        }
        metrics["mean/accuracy"] = sum(row["accuracy"] for row in rows) / len(rows)
        metrics["parameters/ratio"] = _ratio(domains, chain, rows)
        score = _decathlon_score(errors, limits)
        metrics |= {} if score is None else {"decathlon/score": score}
        results = {
            "method": config["method"]["name"],
            "data": config["data"]["name"],
            "seed": config["seed"],
            "protocol": "split",
            "stages": [stage.summary() for stage in chain.done],
            "metrics": metrics,
            "domains": rows,
            "max_errors": {name: limits[name] for name in errors} if limits is not None else None,
            "expected": config["expected"],
            "command": config["command"],
            "environment": config["environment"],
        }
        write_report(Evidence.load(folder.path, results=results))
        for logger in loggers:
            send_results(logger, metrics, folder.path / "figures")
        write_atomically(folder.path / "results.json", json.dumps(results, indent=1, default=str))
    return results


def _score(
    domains: Domains, chain: Chain, trained: Mapping[str, Trained], folder: Path
) -> list[dict[str, Any]]:
    """Score every domain, keep its weights and predictions in a folder of its own, and return a row each."""
    rows = []
    last = dict(trained)
    if chain.source_method is not None and domains.source is not None:
        last = {domains.source: chain.done[0]} | last
    for name in (name for name in domains.names if name in last):
        method = load(last[name])
        predictions = domains.predict(method, name)
        data = domains.data(name)
        row = {
            "name": name,
            "classes": data.num_classes,
            "train": len(data.pool("train", "split")),
            "test": len(predictions.labels),
            "scored": data.scored_part(name),
            "accuracy": accuracy(predictions),
            "source_accuracy": domains.source_accuracy(method),
            "parameters": own_parameters(method),
            "common_parameters": common_parameters(method),
            "seconds": round(sum(s.seconds for s in chain.done if s.name.split(" ")[0] == name), 2),
        }
        place = folder / "domains" / name
        place.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(last[name].weights, place / "weights.pt")
        _keep_predictions(predictions, data.classes, place)
        write_atomically(place / "result.json", json.dumps(row, indent=1))
        rows.append(row)
    return rows


def _keep_predictions(predictions: Predictions, classes: Iterable[str], folder: Path) -> None:
    assert predictions.probabilities is not None
    confidence, predicted = predictions.probabilities.max(dim=1)
    arrays: dict[str, Any] = {
        "labels": predictions.labels.numpy(),
        "predicted": predicted.numpy(),
        "confidence": confidence.numpy(),
        "classes": np.array(list(classes), dtype=np.str_),
    }
    path = folder / "predictions.npz"
    write_atomically(path, lambda file: np.savez_compressed(file, allow_pickle=False, **arrays))


def own_parameters(method: Method) -> int:
    """Return how many parameters a domain has for itself, its classifier left out."""
    if isinstance(method, DomainMethod):
        return method.own_parameters()
    return sum(p.numel() for p in method.backbone.parameters())


def common_parameters(method: Method) -> int:
    """Return how many parameters the domains share beside the network."""
    return method.common_parameters() if isinstance(method, DomainMethod) else 0


def _ratio(domains: Domains, chain: Chain, rows: Sequence[Mapping[str, Any]]) -> float:
    """Return all parameters as a multiple of those of one network, classifiers left out (table 1)."""
    shape = domains.data(domains.names[0]).input_shape
    plain = stages.build_backbone(domains.config["backbone"], shape)
    one = sum(p.numel() for p in plain.parameters())
    own = sum(row["parameters"] for row in rows)
    common = max(row["common_parameters"] for row in rows)
    from_elsewhere = one if chain.ckpt is not None else 0
    return (own + common + from_elsewhere) / one


def _reference_errors(domains: Domains, reference: Chain) -> dict[str, float]:
    trained = reference.run()
    _require_all(reference.failed)
    if reference.source_method is not None and domains.source is not None:
        trained = {domains.source: reference.done[0]} | trained
    return {name: 1 - accuracy(domains.predict(load(stage), name)) for name, stage in trained.items()}


def _decathlon_score(errors: Mapping[str, float], limits: Mapping[str, float] | None) -> float | None:
    if limits is None:
        return None
    limits = {name: limits[name] for name in errors if name in limits}
    if len(limits) < len(errors):
        return None  # a source that was not scored
    try:
        return decathlon_score(errors, limits)
    except ConfigError as error:
        print(f"note: no score: {error.what}", file=sys.stderr)
        return None


def _require_all(failed: Mapping[str, Exception]) -> None:
    """Refuse to call a run finished in which a domain is missing.

    Raises:
        UserError: with what was wrong, if the user can mend it.
    """
    if not failed:
        return
    name, error = next(iter(failed.items()))
    if not all(isinstance(e, UserError) for e in failed.values()):
        raise next(e for e in failed.values() if not isinstance(e, UserError))
    assert isinstance(error, UserError)
    raise type(error)(
        f"{len(failed)} of the domains failed ({', '.join(failed)}); {name}: {error.what}",
        where=error.where,
        instead=f"{error.instead or 'the same without it'}; what was trained is kept: resume=true goes on",
    )
