"""One run: check → data → stages → evaluation → report."""

from __future__ import annotations

import os
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scarcely.config.check import check, names_function, start_of
from scarcely.config.compose import finalize, run_name, without_recipe
from scarcely.config.signature import constant_of
from scarcely.errors import CheckpointError, ConfigError, DataError, UserError
from scarcely.files import write_atomically, write_json
from scarcely.loggers import logging_to, open_loggers, send_results

if TYPE_CHECKING:
    from scarcely.job import Job
    from scarcely.stages import Trained


def run(
    cfg: Any, overrides: Sequence[str], choices: Mapping[str, Any], command: Sequence[str] = ()
) -> dict[str, Any]:
    """Run what Hydra composed and return the content of results.json.

    Raises:
        UserError: anything that the user can mend, before any training where it can be known.
    """
    config = finalize(cfg, overrides, choices)
    check(config)
    config["command"] = shlex.join(command) if command else ""
    return execute(config, run_name(config, overrides))


def execute(config: dict[str, Any], name: str) -> dict[str, Any]:
    """Train, score and report a checked configuration.

    Args:
        config: what `finalize` returned.
        name: of the run, where ``run_dir`` does not say it.
    """
    import torch
    from hydra.utils import instantiate

    from scarcely import checkpoints, memory, stages
    from scarcely.folder import RunFolder

    stages.quiet()
    accelerator = stages.accelerator_of(config["trainer"])
    if config["trainer"]["threads"]:
        torch.set_num_threads(config["trainer"]["threads"])
    for key, given in [
        (start_of(config), config["ckpt"]),
        *(("pretext", s.get("checkpoint")) for s in config["plan"]),
    ]:
        if config["method"]["task"] == "saliency" and names_function(given):
            continue
        if given is not None:  # unreadable, unsafe or empty: known before any data are read
            try:
                checkpoints.tensors_of(checkpoints.load(checkpoints.find(given)))
            except CheckpointError as error:
                raise CheckpointError(error.what, where=f"{key}={given}", instead=error.instead) from error
    if config.get("plan_only"):
        from scarcely.planning import make_plan
        from scarcely.reports.plan_table import print_plan

        plan = make_plan(config, accelerator)
        print_plan(plan)
        return {"metrics": {}, "plan": plan.content()}
    folder = RunFolder.choose(config, name)
    if folder.finished and config["resume"]:
        print(f"this run is finished: {folder.path}", file=sys.stderr)
        return _show(folder.path, folder.results())

    data = instantiate(config["data"], _convert_="all")
    data.check()
    if config["method"]["task"] == "domains":
        from scarcely.domains import train_domains

        config["environment"] = environment(accelerator)
        return _show(folder.path, train_domains(config, folder, data, accelerator))
    if config["method"]["task"] == "saliency":
        from scarcely.explanation import explain

        config["environment"] = environment(accelerator)
        return _show(folder.path, explain(config, folder, data, accelerator))
    data.prepare_data()
    data.setup()
    config["data"]["augmentation"] |= data.augmentation_settings()
    sizes = fit_data(config, data)
    config["environment"] = environment(accelerator)
    *earlier, last = make_jobs(config, data, sizes)
    check_earlier(earlier, data)
    check_networks(last, data)
    if without_recipe(config):
        names = f"method={config['method']['name']} data={config['data']['name']}"
        print(f"note: {names} has no recipe: the method's general defaults are used", file=sys.stderr)

    with (
        folder.opened(config),
        open_loggers(config, folder.path) as loggers,
        logging_to(loggers),
    ):
        if data.scarce:
            data.write_labelled(folder.path / "labelled.csv")
        before = train_earlier(earlier, config, data, accelerator)
        job = before.following(last)
        key = before.key(job, data, accelerator)
        done = stages.run_stage(job, folder.path, data, accelerator, key, before.rows)
        trained = [*before.trained, done]
        counted = class_count(done.weights) if job.task == "count" else before.counted
        with memory.told(
            "the stages are trained, and their weights kept; the scores and the report are not",
            where="method.batch_size, embedding_size, compare_kmeans",
            instead="resume=true with embedding_size=0 and compare_kmeans=false, or on another machine",
        ):
            results = _finish(config, folder.path, data, job, trained, accelerator, counted, loggers)
    return _show(folder.path, results)


@dataclass
class Before:
    """The stages of a run that are done, and what they leave to the next.

    Attributes:
        trained: all of them, in order.
        handed_over: the last one that gives weights, as the next stage inherits it.
        counted: the estimate of the number of new classes, where a stage made one.
    """

    trained: list[Trained] = field(default_factory=list)
    handed_over: Trained | None = None
    counted: dict[str, Any] | None = None

    @property
    def rows(self) -> list[dict[str, Any]]:
        """Their record."""
        return [row for stage in self.trained for row in stage.rows]

    def following(self, job: Job) -> Job:
        """Return the next stage with what is known now."""
        if self.handed_over is not None:
            job = replace(job, inherited=str(self.handed_over.weights))
        if self.counted is not None:
            job = replace(job, num_new=self.counted["num_new"], num_clusters=self.counted["num_new"])
        return job

    def key(self, job: Job, data: Any, accelerator: str) -> str:
        """Return the hash of all that shapes the next stage."""
        from scarcely import checkpoints, stages

        inherited = self.handed_over.key if self.handed_over else checkpoints.content_key(job.inherited)
        return job.key(stages.fingerprint_of(job, data), inherited, accelerator, data.split_keys)


def check_earlier(jobs: Sequence[Job], data: Any) -> None:
    """Build the networks of the stages before the last: what does not fit is known before any training.

    Raises:
        UserError: as `check_networks`, told by the names that the settings of these stages have.
    """
    for job in jobs:
        try:
            check_networks(job, data)
        except UserError as error:
            raise _of_stage(job.name, error) from error


def check_networks(job: Job, data: Any) -> None:
    """Build the networks of a stage.

    Raises:
        UserError: its checkpoint does not fit, or the networks do not take these inputs.
    """
    from scarcely import stages

    samples = len(data.pool(job.role, job.protocol))
    batch_size = min(job.method.get("batch_size", samples), samples)
    stages.build_method(job, data.input_shape).check(batch_size)


def train_earlier(jobs: Sequence[Job], config: Mapping[str, Any], data: Any, accelerator: str) -> Before:
    """Train the stages before the last, or find them in the cache.

    Args:
        jobs: these stages, in order.
        config: of the run.
        data: the data, set up.
        accelerator: ``cuda`` or ``cpu``.
    """
    from scarcely import stages

    before = Before()
    for planned in jobs:
        job = before.following(planned)
        key = before.key(job, data, accelerator)
        try:
            done = stages.cached_stage(
                job, Path(config["cache_dir"]).expanduser(), data, accelerator, key, []
            )
        except UserError as error:
            raise _of_stage(job.name, error) from error
        how = "found in the cache" if done.cached else f"trained in {done.seconds:.0f} s"
        print(f"{job.name}: {how}", file=sys.stderr, flush=True)
        before.trained.append(done)
        if job.task == "count":
            before.counted = class_count(done.weights)
        else:
            before.handed_over = done.after(config["pretext_epoch"] if job.name == "pretext" else None)
    return before


def fit_data(config: dict[str, Any], data: Any) -> dict[str, int]:
    """Return the sizes that the data decide; compare method and data now that these are known.

    Raises:
        ConfigError: settings that do not suit these data.
        DataError: labels, classes or samples that the method needs and the data lack.
    """
    from scarcely import stages

    method = config["method"]
    samples = data.pool(method.get("role", "train"), config["protocol"])
    sizes = {"num_classes": data.num_classes, "num_known": data.num_known}
    for stage in config["plan"]:
        if stage["method"]:
            stages.targets_of(stage["method"], data, config["protocol"])
        least = constant_of(stage["method"]["_target_"], "least_classes") if stage["method"] else None
        if least is not None and data.num_known < least:
            raise DataError(
                f"{stage['method']['name']} tells {least} known classes apart at least, and data={data.name} "
                f"has {data.num_known}",
                where="data.labelled_classes" if data.num_new else "data",
                instead="more known classes, or method.before without this stage",
            )
    if method["task"] == "discovery":
        new = _fit_discovery(config, data)
        return sizes | {"num_new": new, "num_clusters": new}
    if method["task"] == "count":
        return sizes | {"num_new": _fit_discovery(config | {"num_new": "auto"}, data), "num_clusters": 1}
    if config["protocol"] == "split" and method["task"] in ("clustering", "classification", "multilabel"):
        data.pool("test", "split")  # what scores it
    labelled = bool((samples.labels >= 0).any())
    if method["task"] == "classification" and method.get("role") in ("mixed", "unlabelled"):
        if data.num_new:
            raise ConfigError(
                f"{method['name']} knows all classes,"
                f" and {data.num_new} of data={data.name} are to be discovered",
                where="method, data.labelled_classes",
                instead="data.labels_per_class=N for some labels of each class, or method=ranking_statistics",
            )
        labelled = all(len(data.pool(role, config["protocol"])) for role in ("labelled", "unlabelled"))
    clusters = config["num_clusters"] or data.num_classes
    if not clusters and method["task"] == "clustering":
        raise ConfigError(
            f"there are no classes to count in data={data.name}: say how many clusters to look for",
            where="num_clusters",
            instead="num_clusters=K, e.g. num_clusters=10",
        )
    if "labels" in (method.get("needs") or []) and not labelled:
        raise DataError(
            f"{method['name']} learns from labels, and data={data.name} has none",
            where="data.root",
            instead="a folder with one subfolder a class, or method=lsdc num_clusters=K",
        )
    if method["task"] == "clustering" and len(samples) < max(2, clusters):
        raise DataError(
            f"{len(samples)} samples cannot form {clusters} clusters",
            where="data, num_clusters",
            instead="more samples, or fewer clusters",
        )
    labeler = method.get("labeler") or {}
    k = labeler.get("k") if "knn" in str(labeler.get("_target_")) else None
    if isinstance(k, int) and k >= min(len(samples), method["batch_size"]):
        raise ConfigError(
            f"method.labeler.k = {k} neighbours do not exist among {len(samples)} samples",
            where="method.labeler.k",
            instead=f"k below {min(len(samples), method['batch_size'])}",
        )
    for stage in config["plan"]:
        size = (stage["method"] or {}).get("batch_size")
        if size and size > len(samples):
            print(
                f"stage {stage['name']}: {len(samples)} samples are fewer than a batch of {size}; "
                "every step takes them all",
                file=sys.stderr,
            )
    return sizes | {"num_clusters": clusters or 1}


def _fit_discovery(config: dict[str, Any], data: Any) -> int:
    """Return the number of new classes, 1 for one that is yet to be estimated."""
    method, protocol = config["method"], config["protocol"]
    data.pool("labelled", protocol)
    unlabelled = data.pool("unlabelled", protocol)
    if method.get("incremental") and protocol == "split" and "test" not in data.parts:
        raise DataError(
            f"data={data.name} has no test split, on which an incremental run scores old and new classes",
            where="method.incremental, protocol",
            instead="data with a test split, or protocol=all to train without such a score",
        )
    wanted = config["num_new"] or data.num_new
    if not wanted:
        raise ConfigError(
            f"the unlabelled images of data={data.name} have no classes to count: say how many to look for",
            where="num_new",
            instead="num_new=K, or num_new=auto to estimate it",
        )
    if wanted == "auto":
        if data.num_known < 2:
            raise ConfigError(
                "num_new=auto measures new classes by the known ones, and one class is known",
                where="num_new",
                instead="num_new=K, or more known classes",
            )
        return 1
    if wanted > len(unlabelled):
        raise ConfigError(
            f"{len(unlabelled)} unlabelled images cannot form {wanted} classes",
            where="num_new",
            instead=f"at most {len(unlabelled)}",
        )
    return int(wanted)


def class_count(weights: Path) -> dict[str, Any]:
    """Return the estimate of a `class_count` stage, with its curves, and show them."""
    from scarcely import checkpoints
    from scarcely.methods.class_count import read_estimate
    from scarcely.reports.table import print_class_count

    estimate = read_estimate(checkpoints.load(weights)["state_dict"])
    print_class_count(estimate)
    return estimate


def make_jobs(config: dict[str, Any], data: Any, sizes: dict[str, int]) -> list[Any]:
    """Return the stages of a run of one data set, in order.

    Args:
        config: of the run.
        data: the data, set up.
        sizes: what `fit_data` returned.
    """
    from scarcely.job import Job

    jobs = []
    inherited = config["ckpt"]
    for stage in config["plan"]:
        if stage["method"] is None:  # a foreign checkpoint stands in for the stage
            inherited = stage["checkpoint"]
            continue
        own = dict(sizes)
        if stage["method"].get("role") == "labelled":
            own["num_classes"] = data.num_known
        jobs.append(
            Job(
                name=stage["name"],
                method=stage["method"],
                backbone=config["backbone"],
                data=config["data"],
                trainer=config["trainer"],
                seed=config["seed"],
                protocol=config["protocol"],
                **own,
                inherited=inherited,
                named_by=start_of(config) if config["ckpt"] is not None else "pretext",
                whole=config["ckpt"] is not None and config["refine"] is None,  # refined: a new classifier
                min_matched=config["min_matched"],
                key_map=config["key_map"] if inherited is not None else None,
                fast=config["fast"],
                eval_every=config["eval_every"],
            )
        )
        if jobs[-1].task != "count":  # which hands on the weights that it was given
            inherited = None
    if jobs[-1].task == "discovery" and config["embedding_size"]:
        jobs[-1] = replace(jobs[-1], snapshots=min(600, config["embedding_size"]))
    return jobs


def _of_stage(name: str, error: UserError) -> UserError:
    """Return the error of an earlier stage with the names that its settings have: stages.NAME.X."""

    def renamed(text: str | None) -> str | None:
        own = r"(?<![\w./])method\.(?!before\b)|(?<![\w./-])(?=(?:batch_size|epochs)\b)"  # no part of a path
        return text and re.sub(own, f"stages.{name}.", text)

    return type(error)(error.what, where=renamed(error.where), instead=renamed(error.instead))


def _finish(
    config: dict[str, Any],
    folder: Path,
    data: Any,
    job: Any,
    trained: list[Any],
    accelerator: str,
    counted: dict[str, Any] | None,
    loggers: list[Any],
) -> dict[str, Any]:
    """Score, write predictions and results, draw the report."""
    import numpy as np
    import torch

    from scarcely import checkpoints, discovery, evaluation, stages

    if torch.cuda.is_available() and accelerator == "cuda":
        torch.cuda.empty_cache()
    content = checkpoints.load(folder / "weights.pt")
    method = stages.build_method(job, data.input_shape, inherit=False)
    method.load_state_dict(content["state_dict"])
    method.eval()
    device = torch.device(accelerator)
    if job.task == "discovery":
        start = None if job.inherited is None else stages.build_method(job, data.input_shape)
        outcome = discovery.evaluate_discovery(method, data, config, device, job.num_new, start)
    else:
        outcome = evaluation.evaluate(method, data, config, device, job.num_clusters)
    outcome.arrays |= {name: tensor.numpy() for name, tensor in content.get("arrays", {}).items()}
    if outcome.classifier is not None:
        checkpoints.save({"state_dict": outcome.classifier}, folder / "classifier.pt")
    write_atomically(folder / "predictions.npz", lambda file: np.savez_compressed(file, **outcome.arrays))
    for stage in trained[:-1]:
        outcome.metrics |= stage.pretext_scores(config["pretext_epoch"])
    results = {
        "method": config["method"]["name"],
        "data": config["data"]["name"],
        "seed": config["seed"],
        "protocol": config["protocol"],
        "stages": [t.summary() for t in trained],
        "metrics": outcome.metrics,
        "samples": len(outcome.arrays["labels"]),
        "expected": config["expected"],
        "command": config["command"],
        "environment": config["environment"],
        **({} if counted is None else {"class_count": counted}),
    }
    if config["report"]:
        _report(config, folder, data, results, outcome.shown)
    for logger in loggers:
        send_results(logger, results, folder)
    # last of all: a folder with results.json is finished
    write_json(folder / "results.json", results)
    return results


def _report(config: dict[str, Any], folder: Path, data: Any, results: dict[str, Any], shown: Any) -> None:
    from scarcely.reports.evidence import Evidence
    from scarcely.reports.html import write_report

    samples = data.pool(shown, config["protocol"])
    images = samples.inputs.numpy() if samples.kind == "images" else None
    evidence = Evidence.load(folder, images=images, names=samples.names, results=results)
    write_report(evidence)


def _show(folder: Path, results: dict[str, Any]) -> dict[str, Any]:
    from scarcely.reports.evidence import Evidence
    from scarcely.reports.table import print_results

    print_results(Evidence.load(folder, results=results))
    return results


def environment(accelerator: str) -> dict[str, Any]:
    """Return where a result was made: hardware, versions, commit."""
    import torch

    from scarcely import __version__

    return {
        "scarcely": __version__,
        "commit": commit_of(Path(__file__).parent),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "device": describe_device(accelerator),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }


def describe_device(accelerator: str) -> str:
    """Return the name of the GPU or the processor."""
    import torch

    return torch.cuda.get_device_name(0) if accelerator == "cuda" else _processor()


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def commit_of(folder: Path) -> str | None:
    """Return the commit that a folder is checked out at; None outside of git, or without git.

    It ends with ``-dirty`` where files differ from it, other than the pages and tables that results are
    written to.
    """

    def git(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = ["git", "-C", str(folder), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=5)

    try:
        found = git("describe", "--always").stdout.strip()
        written = ":(top,exclude)*.md", ":(top,exclude)results/*.csv"
        dirty = found and git("diff", "--quiet", "HEAD", "--", ":/", *written).returncode
    except (OSError, subprocess.TimeoutExpired):
        return None
    return f"{found}-dirty" if dirty else found or None
