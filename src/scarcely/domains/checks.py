"""What can be known to be wrong with a run over several domains before any training."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from scarcely import checkpoints, stages
from scarcely.domains.chain import Chain
from scarcely.domains.jobs import Domains, design_of, is_a
from scarcely.errors import ConfigError, UserError
from scarcely.job import Job
from scarcely.methods.adapted import AdaptedMethod
from scarcely.methods.adapters import Adapters
from scarcely.methods.base import Method
from scarcely.methods.round_robin import RoundRobin


def check_settings(config: Mapping[str, Any]) -> None:
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


def check_chain(chain: Chain) -> None:
    """Look at every stage of every domain, before any training.

    Raises:
        UserError: settings that do not fit.
    """
    if chain.source_method is not None:
        assert chain.domains.source is not None
        _check_stage(chain, chain.domains.job(chain.source_method, chain.domains.source))
    elif chain.domains.source_weights is not None:
        _check_source_classes(chain.domains, chain.domains.source_weights)
    if not chain.targets:
        raise ConfigError(
            f"{chain.domains.source} is the source, and there is no other domain",
            where="data.domains, data.source",
            instead="more domains, or data.source=null",
        )
    for i, method in enumerate(chain.each):
        if is_a(method, RoundRobin):
            _check_round_robin(chain, i)
            continue
        _check_source(chain, method)
        decay = method.get("decay")
        if decay == "validation":
            _check_validation(chain, i)
        unknown = [n for n in decay if n not in chain.targets] if isinstance(decay, dict) else []
        if unknown:
            raise ConfigError(
                f"{unknown[0]!r} is no domain that is trained on",
                where="method.decay",
                instead=", ".join(chain.targets),
            )
        for name in chain.targets:
            job = chain.domains.job(method, name)
            _check_stage(chain, replace(job, inherited=chain.ckpt if i == 0 else None))
    if chain.prediction is not None:
        _check_prediction(chain, chain.prediction)


def _check_prediction(chain: Chain, method: dict[str, Any]) -> None:
    """Look whether the domains can be told apart by their images alone, and are one network.

    Raises:
        ConfigError: they cannot, or are not.
    """
    last, config = chain.plan[-1]["method"], chain.domains.config
    if not is_a(last, AdaptedMethod) or last.get("shared"):
        raise ConfigError(
            f"{method['name']} needs one network with adapters of all domains, and method={last['name']}"
            " has none",
            where="method, method.before",
            instead="method=parallel_adapters, method.shared=false",
        )
    given = chain.domains.source is None and config["backbone"].get("weights") is not None
    if not chain.begun and not given:
        raise ConfigError(
            "every domain begins with a random network of its own; predicted domains need one of all",
            where="method.before, data.source",
            instead=f"method.before=[source,{method['name']}]; or data.source=null with backbone.weights",
        )
    if config["trainer"]["devices"] > 1:
        raise ConfigError(
            f"{method['name']} trains on one device", where="trainer.devices", instead="trainer.devices=1"
        )
    shapes = {name: chain.domains.data(name).input_shape for name in chain.scored}
    other = next((name for name in shapes if shapes[name] != shapes[chain.scored[0]]), None)
    if other is not None:
        first = chain.scored[0]
        raise ConfigError(
            f"the size would tell the domain: images of {first} have {shapes[first][-1]} pixels,"
            f" those of {other} {shapes[other][-1]}",
            where="data.signs, data.size",
            instead="data.signs=[], which cuts and mirrors signs as all others; or"
            f" data.size={config['data']['image_size']}, which cuts nothing",
        )
    job, data = chain.domains.prediction(method, chain.scored)
    stages.build_method(job, data.input_shape)


def _check_round_robin(chain: Chain, i: int) -> None:
    """Look whether the stages around a round robin have the adapters that it trains.

    Raises:
        ConfigError: they have not, or the stage cannot be trained as asked.
    """
    name, config = chain.each[i]["name"], chain.domains.config
    following = chain.each[i + 1] if i + 1 < len(chain.each) else {}
    if not is_a(following, Adapters):
        raise ConfigError(
            f"{name} trains the adapters of the stage that follows, and there is none with adapters",
            where="method, method.before",
            instead=f"method=parallel_adapters method.before=[source,{name}]",
        )
    if any(not is_a(m, Adapters) or design_of(m) != design_of(following) for m in chain.each[i - 1 : i]):
        raise ConfigError(
            f"{name} goes on with the adapters of {chain.each[i - 1]['name']}, and those of"
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
    if chain.domains.source is not None and chain.source_method is None and chain.ckpt is None:
        raise ConfigError(
            f"{name} starts from the network of {chain.domains.source}, and none is trained",
            where="method.before, data.source",
            instead=f"method.before=[source,{name}], or data.source=null",
        )
    if chain.source_method is not None and chain.source_method.get("hidden") is not None:
        raise ConfigError(
            f"{name} goes on with the classifier of the source, which is not linear",
            where="stages.source.hidden",
            instead="null",
        )
    job, data = chain.domains.round_robin(chain.each[i], following)
    size = min(job.method["batch_size"], *(len(one.pool("train", "split")) for one in data.each.values()))
    _check_batch(job, stages.build_method(job, data.input_shape), data.input_shape, size)


def _check_source(chain: Chain, method: Mapping[str, Any]) -> None:
    """Refuse a network without adapters where one with them is expected."""
    source = chain.source_method
    if source is None or not method.get("source_with_adapters"):
        return
    if source.get("kind") != method["kind"]:
        raise ConfigError(
            f"{method['name']} expects a source with adapters, and {source['name']} trains it without",
            where="method.source, method.source_with_adapters",
            instead="method.source_with_adapters=false, which puts them in afterwards",
        )


def _check_source_classes(domains: Domains, weights: Path) -> None:
    """Refuse a checkpoint of the source that knows another number of classes than are scored."""
    assert domains.source is not None
    known = checkpoints.load(weights)["job"]["num_classes"]
    found = domains.data(domains.source).num_classes
    if known != found:
        raise ConfigError(
            f"ckpt={domains.config['ckpt']} tells {known} classes of {domains.source} apart, and there are"
            f" {found}",
            where="ckpt, data.source_classes",
            instead=f"data.source_classes={known}" if known < found else "the data that it was trained on",
        )


def _check_validation(chain: Chain, i: int) -> None:
    """Look whether there is a validation part, and tell what a weight decay that is chosen on it means.

    Raises:
        ConfigError: an earlier stage has trained on it.
        DataError: a domain has none.
    """
    if i:
        raise ConfigError(
            f"the stage before {chain.each[i]['name']} has trained on the validation part, which can then"
            " choose no weight decay",
            where="method.decay",
            instead="size, a number, or {DOMAIN: number}",
        )
    for name in chain.targets:
        chain.domains.data(name, "val")
    same = [name for name in chain.targets if chain.domains.data(name).scored_part(name) == "val"]
    if same:
        print(
            "note: the weight decay is chosen on the validation part, which is also what is scored, so that"
            f" these accuracies are too high: {', '.join(same)}",
            file=sys.stderr,
        )


def _check_stage(chain: Chain, job: Job) -> None:
    data = chain.domains.data(job.data["domain"])
    size = min(job.method.get("batch_size", 1), len(data.pool("train", "split")))
    method = stages.build_method(job, data.input_shape)
    method.check(size)
    _check_batch(job, method, data.input_shape, size)


def _check_batch(job: Job, method: Method, shape: tuple[int, ...], size: int) -> None:
    """Refuse a batch of one image where it would leave BatchNorm one value a channel.

    Raises:
        ConfigError: it would.
    """
    if size // job.trainer["devices"] > 1:
        return
    try:
        with torch.no_grad():
            method.train()(torch.zeros(1, *shape))
    except ValueError as error:
        raise ConfigError(
            f"{job.name}: of one image in a batch BatchNorm sees one value a channel, and needs two",
            where="batch_size, stages.NAME.batch_size, data.domains",
            instead="batch_size=2 or more on each device, and as many training images of every domain; or a"
            " larger data.image_size",
        ) from error


def check_reference(reference: Chain) -> None:
    """Look whether the method that the score is measured by can be trained as well.

    Raises:
        UserError: it cannot.
    """
    try:
        check_chain(reference)
    except UserError as error:
        raise type(error)(
            f"{reference.plan[-1]['name']}, whose errors the score is measured by, cannot be trained:"
            f" {error.what}",
            where=f"method.reference ({error.where})" if error.where else "method.reference",
            instead=f"method.reference=none for no score; or {error.instead}",
        ) from error
