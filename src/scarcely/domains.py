"""A run over several domains: the source's network, then each other domain from it (chapters 3 and 4)."""

from __future__ import annotations

import hashlib
import json
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from hydra.utils import get_class, instantiate

from scarcely import checkpoints, stages
from scarcely.callbacks.history import write_rows
from scarcely.data.decathlon import Decathlon
from scarcely.data.module import DataModule
from scarcely.errors import ConfigError, UserError
from scarcely.evaluation import accuracy
from scarcely.files import write_atomically
from scarcely.folder import RunFolder
from scarcely.job import Job
from scarcely.loggers import logging_to, open_loggers, send_results
from scarcely.methods.adapted import AdaptedMethod
from scarcely.methods.adapters import Adapters
from scarcely.methods.base import Method, Predictions
from scarcely.methods.domain_prediction import DomainPrediction, half_as_deep, in_one, predict_both
from scarcely.methods.domains import DomainMethod
from scarcely.methods.round_robin import RoundRobin, apart, source_alone, together
from scarcely.methods.together import Mixed, Together
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
T = TypeVar("T", bound=Together)
_FINAL_PASS = "scarcely.methods.round_robin.FinalPass"
_DESIGN = (  # settings that say which adapters a network has, and what is decayed
    *("kind", "where", "residual", "init", "dropout", "source_with_adapters"),
    *("norm_decay", "head_decay"),
)


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
    _data: dict[tuple[str, str], Decathlon] = field(default_factory=dict)

    @classmethod
    def of(cls, config: dict[str, Any], data: Decathlon, accelerator: str) -> Domains:
        """Name the domains of a run. A checkpoint of ours says itself which domain it is of.

        Raises:
            ConfigError: it is of another source than the one given; or few labels, which no method of several
                domains takes.
        """
        _require_all_labels(config)
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
        adapters = {key: following[key] for key in _DESIGN if key in following}
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


@dataclass
class Chain:
    """Stages from the source to every domain.

    Attributes:
        domains: what is trained on.
        plan: stages in order; that of the source first, where there is one.
        ckpt: what stands in for the source's network.
        done: all stages that were trained or found, in order.
        failed: domains that could not be trained, and why.
        source: the network that the source is scored by, once it is trained here.
        predictor: of the domain of an image, where it is predicted.
        metrics: what a stage of all domains together has to tell.
    """

    domains: Domains
    plan: list[dict[str, Any]]
    ckpt: str | None = None
    done: list[Trained] = field(default_factory=list)
    failed: dict[str, Exception] = field(default_factory=dict)
    source: Trained | None = None
    predictor: Trained | None = None
    metrics: dict[str, float] = field(default_factory=dict)

    @property
    def source_method(self) -> dict[str, Any] | None:
        """How the source is trained here, with adapters its convolutions too; None if it is not trained."""
        first = self.plan[0]
        if first["name"] != SOURCE or self.domains.source is None:
            return None
        return first["method"] | ({"shared": True} if "shared" in first["method"] else {})

    @property
    def each(self) -> list[dict[str, Any]]:
        """The methods that are trained on each domain, or on all of them together."""
        methods = [stage["method"] for stage in self.plan if stage["name"] != SOURCE]
        return [method for method in methods if not _is(method, DomainPrediction)]

    @property
    def prediction(self) -> dict[str, Any] | None:
        """How the domain of an image is predicted; None if it is given."""
        return next((s["method"] for s in self.plan if _is(s["method"], DomainPrediction)), None)

    @property
    def scored(self) -> tuple[str, ...]:
        """The domains that have a network of this run, the source first."""
        trained = self.source_method is not None or self.domains.source_weights is not None
        return self.domains.names if trained and self.domains.source is not None else self.targets

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
        for i, method in enumerate(self.each):
            if _is(method, RoundRobin):
                self._check_round_robin(i)
                continue
            self._check_source(method)
            decay = method.get("decay")
            if decay == "validation":
                self._check_validation(i)
            unknown = [n for n in decay if n not in self.targets] if isinstance(decay, dict) else []
            if unknown:
                raise ConfigError(
                    f"{unknown[0]!r} is no domain that is trained on",
                    where="method.decay",
                    instead=", ".join(self.targets),
                )
            for name in self.targets:
                job = self.domains.job(method, name)
                self._check(replace(job, inherited=self.ckpt if i == 0 else None))
        if self.prediction is not None:
            self._check_prediction(self.prediction)

    def _check_prediction(self, method: dict[str, Any]) -> None:
        """Look whether the domains can be told apart by their images alone, and are one network.

        Raises:
            ConfigError: they cannot, or are not.
        """
        last, config = self.plan[-1]["method"], self.domains.config
        if not _is(last, AdaptedMethod) or last.get("shared"):
            raise ConfigError(
                f"{method['name']} needs one network with adapters of all domains, and method={last['name']}"
                " has none",
                where="method, method.before",
                instead="method=parallel_adapters, method.shared=false",
            )
        begun = self.source_method is not None or self.ckpt is not None
        begun = begun or any(_is(m, RoundRobin) for m in self.each)
        given = self.domains.source is None and config["backbone"].get("weights") is not None
        if not begun and not given:
            raise ConfigError(
                "every domain begins with a random network of its own; predicted domains need one of all",
                where="method.before, data.source",
                instead=f"method.before=[source,{method['name']}]; or data.source=null with backbone.weights",
            )
        if config["trainer"]["devices"] > 1:
            raise ConfigError(
                f"{method['name']} trains on one device", where="trainer.devices", instead="trainer.devices=1"
            )
        shapes = {name: self.domains.data(name).input_shape for name in self.scored}
        other = next((name for name in shapes if shapes[name] != shapes[self.scored[0]]), None)
        if other is not None:
            first = self.scored[0]
            raise ConfigError(
                f"the size would tell the domain: images of {first} have {shapes[first][-1]} pixels,"
                f" those of {other} {shapes[other][-1]}",
                where="data.signs, data.size",
                instead="data.signs=[], which cuts and mirrors signs as all others; or"
                f" data.size={config['data']['image_size']}, which cuts nothing",
            )
        job, data = self.domains.prediction(method, self.scored)
        stages.build_method(job, data.input_shape)

    def _check_round_robin(self, i: int) -> None:
        """Look whether the stages around a round robin have the adapters that it trains.

        Raises:
            ConfigError: they have not, or the stage cannot be trained as asked.
        """
        name, config = self.each[i]["name"], self.domains.config
        following = self.each[i + 1] if i + 1 < len(self.each) else {}
        if not _is(following, Adapters):
            raise ConfigError(
                f"{name} trains the adapters of the stage that follows, and there is none with adapters",
                where="method, method.before",
                instead=f"method=parallel_adapters method.before=[source,{name}]",
            )
        if any(not _is(m, Adapters) or _design(m) != _design(following) for m in self.each[i - 1 : i]):
            raise ConfigError(
                f"{name} goes on with the adapters of {self.each[i - 1]['name']}, and those of"
                f" {following['name']} are others",
                where="method.before",
                instead=f"[source,{following['name']},{name}], or [source,{name}]",
            )
        if following.get("shared"):
            raise ConfigError(
                f"the convolutions that {name} has trained are not frozen in its final pass",
                where="method.shared",
                instead="false",
            )
        if following.get("decay") == "validation":
            raise ConfigError(
                f"{name} trains on the validation part, which can then choose no weight decay",
                where="method.decay",
                instead="size, a number, or {DOMAIN: number}",
            )
        if config["trainer"]["devices"] > 1:
            raise ConfigError(
                f"{name} trains on one device: what belongs to other domains than that of the batch has no"
                " gradient to share",
                where="trainer.devices",
                instead="trainer.devices=1",
            )
        if self.domains.source is not None and self.source_method is None and self.ckpt is None:
            raise ConfigError(
                f"{name} starts from the network of {self.domains.source}, and none is trained",
                where="method.before, data.source",
                instead=f"method.before=[source,{name}], or data.source=null",
            )
        if self.source_method is not None and self.source_method.get("hidden") is not None:
            raise ConfigError(
                f"{name} goes on with the classifier of the source, which is not linear",
                where="stages.source.hidden",
                instead="null",
            )
        job, data = self.domains.round_robin(self.each[i], following)
        stages.build_method(job, data.input_shape)

    def _check_source(self, method: Mapping[str, Any]) -> None:
        """Refuse a network without adapters where one with them is expected."""
        source = self.source_method
        if source is None or not method.get("source_with_adapters"):
            return
        if source.get("kind") != method["kind"]:
            raise ConfigError(
                f"{method['name']} expects a source with adapters, and {source['name']} trains it without",
                where="method.source, method.source_with_adapters",
                instead="method.source_with_adapters=false, which puts them in afterwards",
            )

    def _check_validation(self, i: int) -> None:
        """Tell what a weight decay that is chosen on the validation part means."""
        if i:
            raise ConfigError(
                f"the stage before {self.each[i]['name']} has trained on the validation part, which can then"
                " choose no weight decay",
                where="method.decay",
                instead="size, a number, or {DOMAIN: number}",
            )
        same = [name for name in self.targets if self.domains.data(name).scored_part(name) == "val"]
        if same:
            print(
                f"note: the weight decay is chosen on the validation part, which is also what is scored:"
                f" {', '.join(same)}",
                file=sys.stderr,
            )

    def _check(self, job: Job) -> None:
        data = self.domains.data(job.data["domain"])
        size = min(job.method.get("batch_size", 1), len(data.pool("train", "split")))
        stages.build_method(job, data.input_shape).check(size)

    def run(self, finished: Callable[[str, Trained], None] | None = None) -> dict[str, Trained]:
        """Train what is not in the cache, and return the last stage of every domain.

        A domain that cannot be trained is left out, and told in ``failed``; the others go on.

        Args:
            finished: is told each domain as soon as its last stage is done, the source at the end.
        """
        start: tuple[str | None, str] = (self.ckpt, checkpoints.content_key(self.ckpt))
        if self.source_method is not None:
            assert self.domains.source is not None
            self.source = self._stage(self.domains.job(self.source_method, self.domains.source), *start)
            start = (str(self.source.weights), self.source.key)
        elif self.domains.source_weights is not None:
            content = checkpoints.load(self.domains.source_weights)
            self.source = Trained(
                content["job"]["name"],
                self.domains.source_weights,
                start[1],
                int(content["epochs"]),
                0.0,
                True,
            )
        starts = dict.fromkeys(self.targets, start)
        trained: dict[str, Trained] = {}
        for i, method in enumerate(self.each):
            if _is(method, RoundRobin):
                if self.failed:  # it is for all of them
                    break
                starts = self._round_robin(method, self.each[i + 1], starts, trained)
                continue
            own = method
            if i and _is(self.each[i - 1], RoundRobin):
                own = method | {"_target_": _FINAL_PASS, "name": f"{method['name']} final pass"}
            if hasattr(get_class(method["_target_"]), "join") and trained:
                if self.failed:  # what is of all domains would be of fewer
                    break
                starts, own = self._joined(method, trained)
            for name in starts:
                try:
                    job = self._with_decay(own, name, *starts[name])
                    trained[name] = self._stage(job, *starts[name])
                    if finished is not None and i == len(self.each) - 1:
                        finished(name, trained[name])
                except Exception as error:  # the others are worth going on for
                    self._fail(name, error)
                    trained.pop(name, None)
            starts = {name: (str(t.weights), t.key) for name, t in trained.items()}
        if self.prediction is not None and not self.failed:
            job, data = self.domains.prediction(self.prediction, self.scored)
            self.predictor = self._train(job, data, data.fingerprint(), None, "")
        if finished is not None and self.source is not None and self.domains.source is not None:
            finished(self.domains.source, self.source)
        return trained

    def _joined(
        self, method: dict[str, Any], trained: Mapping[str, Trained]
    ) -> tuple[dict[str, tuple[str | None, str]], dict[str, Any]]:
        """Make what a stage starts from of what all domains have learnt before it."""
        states = {name: checkpoints.load(stage.weights)["state_dict"] for name, stage in trained.items()}
        stage: Any = get_class(method["_target_"])
        starts, settings, report = stage.join(states, method)
        print(report, file=sys.stderr, flush=True)
        sizes = {size: method.get(size) for size in ("rank", "fraction", "energy", "joint")}
        key = _digest([{name: t.key for name, t in trained.items()}, sizes])
        folder = self._joined_folder(key)
        for name, state in starts.items():
            checkpoints.save({"state_dict": state}, folder / f"{name}.pt")
        return {name: (str(folder / f"{name}.pt"), key) for name in starts}, method | settings

    def _round_robin(
        self,
        method: dict[str, Any],
        following: dict[str, Any],
        starts: Mapping[str, tuple[str | None, str]],
        trained: Mapping[str, Trained],
    ) -> dict[str, tuple[str | None, str]]:
        """Train one network on all domains, and return what the stage of each then starts from.

        It begins where the stage of each domain has ended; where there was none, where it would begin.
        """
        source = self.domains.source
        if trained:
            states = {name: checkpoints.load(stage.weights)["state_dict"] for name, stage in trained.items()}
        else:
            states = {name: self._untrained(following, name, starts[name][0]) for name in starts}
        job, data = self.domains.round_robin(method, following)
        before = _digest([{name: key for name, (_, key) in starts.items()}, job.method])
        joined = self._joined_folder(before) / f"{method['name']}.pt"
        checkpoints.save({"state_dict": together(states, source)}, joined)
        if source is not None:
            start = stages.build_method(replace(job, inherited=str(joined)), data.input_shape)
            self.metrics[f"{method['name']}/source_accuracy_before"] = self._accuracy_of_source(start)
        found = self._train(job, data, data.fingerprint(), str(joined), before)
        state, folder = checkpoints.load(found.weights)["state_dict"], self._joined_folder(found.key)
        for name in starts:
            checkpoints.save({"state_dict": apart(state, name, source)}, folder / f"{name}.pt")
        if source is not None:
            self.metrics[f"{method['name']}/source_accuracy"] = self._accuracy_of_source(load(found))
        if source is not None and self.source is not None:
            content = checkpoints.load(self.source.weights)
            own = source_alone(state, content["state_dict"], source)
            checkpoints.save(content | {"state_dict": own}, folder / f"{source}.pt")
            self.source = replace(self.source, weights=folder / f"{source}.pt", key=found.key)
        return {name: (str(folder / f"{name}.pt"), found.key) for name in starts}

    def _untrained(self, method: dict[str, Any], name: str, inherited: str | None) -> dict[str, Any]:
        job = replace(self.domains.job(method, name), inherited=inherited)
        return stages.build_method(job, self.domains.data(name).input_shape).state_dict()

    def _accuracy_of_source(self, method: Method) -> float:
        assert self.domains.source is not None
        return accuracy(self.domains.predict(method.eval(), self.domains.source))

    def _joined_folder(self, key: str) -> Path:
        folder = Path(self.domains.config["cache_dir"]).expanduser() / "joined" / key
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def _stage(self, job: Job, inherited: str | None, before: str) -> Trained:
        data = self.domains.data(job.data["domain"], job.data["scored"])
        samples = data.pool(job.role, job.protocol).fingerprint(labels=True)
        return self._train(job, data, samples, inherited, before)

    def _train(self, job: Job, data: DataModule, samples: str, inherited: str | None, before: str) -> Trained:
        job = replace(job, inherited=inherited)
        key = job.key(samples, before, self.domains.accelerator, Decathlon.split_keys)
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
        print(f"{name}: failed, the other domains go on\n{error}", file=sys.stderr, flush=True)
        if not isinstance(error, UserError):
            traceback.print_exception(error)
        # the frames of its traceback would keep the network in memory
        error.__cause__ = error.__context__ = None
        self.failed[name] = error.with_traceback(None)


def _is(method: Mapping[str, Any], kind: type) -> bool:
    return "_target_" in method and issubclass(get_class(method["_target_"]), kind)


def _design(method: Mapping[str, Any]) -> dict[str, Any]:
    return {key: method[key] for key in _DESIGN if key in method}


def _digest(content: Any) -> str:
    text = json.dumps(content, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()


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
    own_folders = isinstance(data.domains, Mapping) and any(data.domains.values())
    published = set(domains.names) == set(MAX_ERRORS) and not own_folders
    reference = Chain(domains, config["reference"], config["ckpt"]) if "reference" in config else None
    if reference is not None and not published:
        _check_reference(reference)
    with folder.opened(config), open_loggers(config, folder.path) as loggers, logging_to(loggers):
        found: dict[str, dict[str, Any]] = {}
        trained = chain.run(
            lambda name, stage: found.update({name: _score(domains, chain, name, stage, folder.path)})
        )
        rows = [found[name] for name in domains.names if name in found]
        write_rows(folder.path / "metrics.csv", [row for stage in chain.done for row in stage.rows])
        _require_all(chain.failed)
        errors = {row["name"]: 1 - row["accuracy"] for row in rows}
        if published:
            limits: dict[str, float] | None = dict(MAX_ERRORS)
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
        metrics |= chain.metrics
        if chain.predictor is not None:
            predicted = _score_predicted(domains, chain, trained)
            metrics |= predicted
            errors_predicted = {name: 1 - predicted[f"domain/{name}/predicted_accuracy"] for name in errors}
            score_predicted = _decathlon_score(errors_predicted, limits)
            metrics |= {} if score_predicted is None else {"decathlon/score_predicted": score_predicted}
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


def _score(domains: Domains, chain: Chain, name: str, stage: Trained, folder: Path) -> dict[str, Any]:
    """Score a domain, keep its weights and predictions in a folder of its own, and return its row."""
    method, data = load(stage), domains.data(name)
    predictions = domains.predict(method, name)
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
        "seconds": round(sum(s.seconds for s in chain.done if s.name.startswith(f"{name} ")), 2),
    }
    place = folder / "domains" / name
    place.mkdir(parents=True, exist_ok=True)
    # a stage in the cache may have been trained when its classes were called otherwise
    content = checkpoints.load(stage.weights) | {"classes": list(data.classes)}
    checkpoints.save(content, place / "weights.pt")
    _keep_predictions(predictions, data.classes, place)
    write_atomically(place / "result.json", json.dumps(row, indent=1))
    return row


def _score_predicted(domains: Domains, chain: Chain, trained: Mapping[str, Trained]) -> dict[str, float]:
    """Score all domains anew, that of each image predicted: a wrong one is an error, whatever the class."""
    assert chain.predictor is not None
    assert chain.prediction is not None
    names, device = chain.scored, torch.device(domains.accelerator)
    _, data = domains.prediction(chain.prediction, names)
    methods: dict[str, Any] = {name: load(trained[name]) for name in names if name in trained}
    network, places = in_one(methods, next((name for name in names if name not in methods), None))
    predictor = load(chain.predictor).to(device)
    network.to(device)
    known = [(places[name], domains.data(name).augmentation) for name in names]
    metrics: dict[str, float] = {}
    right, count = 0, 0
    for number, name in enumerate(names):
        batches = data.clean(name, "test", "split", batch_size=256, device=device)
        domain, classes, labels = predict_both(predictor, network, known, batches, data.seen(name))
        found = domain == number
        metrics[f"domain/{name}/predicted_accuracy"] = float((found & (classes == labels)).float().mean())
        right, count = right + int(found.sum()), count + len(found)
    metrics["mean/predicted_accuracy"] = sum(metrics.values()) / len(metrics)
    return metrics | {"domain_prediction/accuracy": right / count}


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
    last = chain.each[-1]
    frozen = chain.source is None and _is(last, AdaptedMethod) and not last.get("shared")
    return (own + common + (one if frozen else 0)) / one


def _check_reference(reference: Chain) -> None:
    """Look whether the method that the score is measured by can be trained as well.

    Raises:
        UserError: it cannot.
    """
    try:
        reference.check()
    except UserError as error:
        raise type(error)(
            f"{reference.plan[-1]['name']}, whose errors the score is measured by, cannot be trained:"
            f" {error.what}",
            where=f"method.reference ({error.where})" if error.where else "method.reference",
            instead=f"method.reference=none for no score; or {error.instead}",
        ) from error


def _require_all_labels(config: Mapping[str, Any]) -> None:
    """Refuse settings that hide labels, or train on what is scored."""
    data, method = config["data"], config["method"]["name"]
    for key in ("labels_per_class", "labels_file", "labelled_classes"):
        if data.get(key) is not None:
            raise ConfigError(
                f"method={method} on several domains learns from all labels",
                where=f"data.{key}",
                instead="null; data.train_share=0.1 takes fewer images",
            )
    if config["protocol"] == "all":
        raise ConfigError(
            f"method={method} on several domains scores images that it has not seen",
            where="protocol",
            instead="split",
        )


def _reference_errors(domains: Domains, reference: Chain) -> dict[str, float]:
    trained = reference.run()
    _require_all(reference.failed)
    if reference.source is not None and domains.source is not None:
        trained = {domains.source: reference.source} | trained
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
    kept = "with another run_dir, what was trained is found in the cache"
    raise type(error)(
        f"{len(failed)} of the domains failed ({', '.join(failed)}); {name}: {error.what}",
        where=error.where,
        instead=f"{error.instead or 'the same without it'}; {kept}",
    )
