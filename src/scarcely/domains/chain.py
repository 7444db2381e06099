"""The stages from the source to every domain, one after the other."""

from __future__ import annotations

import hashlib
import json
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from hydra.utils import get_class

from scarcely import checkpoints, stages
from scarcely.data.module import DataModule
from scarcely.domains.jobs import DECAYS, Domains, is_a
from scarcely.errors import UserError
from scarcely.evaluation import accuracy
from scarcely.job import Job
from scarcely.methods.base import Method
from scarcely.methods.domain_prediction import DomainPrediction
from scarcely.methods.round_robin import RoundRobin, apart, source_alone, together
from scarcely.stages import Trained

SOURCE = "source"  # name of the stage that trains on the source domain
_FINAL_PASS = "scarcely.methods.round_robin.FinalPass"


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
        return [method for method in methods if not is_a(method, DomainPrediction)]

    @property
    def prediction(self) -> dict[str, Any] | None:
        """How the domain of an image is predicted; None if it is given."""
        return next((s["method"] for s in self.plan if is_a(s["method"], DomainPrediction)), None)

    @property
    def begun(self) -> bool:
        """Whether all domains go on from one trained network; else each begins as its backbone does."""
        starts = self.source_method is not None or self.ckpt is not None
        return starts or any(is_a(method, RoundRobin) for method in self.each)

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
            self.domains.release(self.domains.source)
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
            if is_a(method, RoundRobin):
                if self.failed:  # it is for all of them
                    break
                starts = self._round_robin(method, self.each[i + 1], starts, trained)
                continue
            own = method
            if i and is_a(self.each[i - 1], RoundRobin):
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
                self.domains.release(name)
            starts = {name: (str(t.weights), t.key) for name, t in trained.items()}
        if self.prediction is not None and not self.failed:
            job, data = self.domains.prediction(self.prediction, self.scored)
            self.predictor = self._train(job, data, data.fingerprint(), None, "")
            self.domains.release(*self.domains.names)
        if finished is not None and self.source is not None and self.domains.source is not None:
            finished(self.domains.source, self.source)
        self.domains.release(*self.domains.names)
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
        self.domains.release(*self.domains.names)
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
        chosen_by = self.domains.data(self.domains.names[0]).split_keys
        key = job.key(samples, before, self.domains.accelerator, chosen_by)
        cache = Path(self.domains.config["cache_dir"]).expanduser()
        found = stages.cached_stage(job, cache, data, self.domains.accelerator, key, [])
        how = "found in the cache" if found.cached else f"trained in {found.seconds:.0f} s"
        print(f"{job.name}: {how}", file=sys.stderr, flush=True)
        self.done.append(found)
        return found

    def _with_decay(self, method: dict[str, Any], name: str, inherited: str | None, before: str) -> Job:
        """Return the job of a domain, its weight decay chosen on the validation part where that is asked.

        The networks that it is chosen by are trained on the train part alone, whatever is trained on then.
        """
        if method.get("decay") != "validation":
            return self.domains.job(method, name)
        found = {}
        for decay in DECAYS:
            job = self.domains.job(method | {"decay": decay}, name, scored="val")
            trained = self._stage(replace(job, name=f"{job.name} decay {decay:g}"), inherited, before)
            found[decay] = accuracy(self.domains.predict(load(trained), name, "val"))
        best = max(found, key=lambda decay: found[decay])
        told = ", ".join(f"{decay:g} {value:.1%}" for decay, value in found.items())
        too = ", which is scored too" if self.domains.data(name).scored_part(name) == "val" else ""
        print(
            f"{name}: weight decay {best:g} on the validation part{too} ({told})", file=sys.stderr, flush=True
        )
        return self.domains.job(method | {"decay": best}, name)

    def _fail(self, name: str, error: Exception) -> None:
        print(f"{name}: failed, the other domains go on\n{error}", file=sys.stderr, flush=True)
        if not isinstance(error, UserError):
            traceback.print_exception(error)
        # the frames of its traceback would keep the network in memory
        error.__cause__ = error.__context__ = None
        self.failed[name] = error.with_traceback(None)


def load(trained: Trained) -> Method:
    """Return the method of a finished stage with its weights, in eval mode."""
    content = checkpoints.load(trained.weights)
    method = stages.build_method(Job(**content["job"]), tuple(content["input_shape"]), inherit=False)
    method.load_state_dict(content["state_dict"])
    return method.eval()


def _digest(content: Any) -> str:
    text = json.dumps(content, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()
