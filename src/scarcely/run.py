"""One run: check → data → stages → evaluation → report."""

from __future__ import annotations

import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from scarcely.config.check import check
from scarcely.config.compose import finalize, run_name, without_recipe
from scarcely.errors import CheckpointError, ConfigError, DataError
from scarcely.files import write_atomically
from scarcely.loggers import open_loggers, send_results


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

    from scarcely import checkpoints, stages
    from scarcely.folder import RunFolder

    stages.quiet()
    accelerator = stages.accelerator_of(config["trainer"])
    if config["trainer"]["threads"]:
        torch.set_num_threads(config["trainer"]["threads"])
    for key, given in [("ckpt", config["ckpt"]), *(("pretext", s.get("checkpoint")) for s in config["plan"])]:
        if given is not None:  # unreadable, unsafe or empty: known before any data are read
            try:
                checkpoints.tensors_of(checkpoints.load(checkpoints.find(given)))
            except CheckpointError as error:
                raise CheckpointError(error.what, where=f"{key}={given}", instead=error.instead) from error
    folder = RunFolder.choose(config, name)
    if folder.finished and config["resume"]:
        print(f"this run is finished: {folder.path}", file=sys.stderr)
        return _show(folder.path, folder.results())

    data = instantiate(config["data"], _convert_="all")
    data.check()
    data.prepare_data()
    data.setup()
    num_clusters = _fit_data(config, data)
    config["environment"] = environment(accelerator)
    jobs = _jobs(config, data, num_clusters)
    for job in jobs:  # does a checkpoint fit, do the networks take these inputs: known before any training
        stages.build_method(job, data.input_shape)
    if without_recipe(config):
        names = f"method={config['method']['name']} data={config['data']['name']}"
        print(f"note: {names} has no recipe: the method's general defaults are used", file=sys.stderr)

    with (
        folder.opened(config),
        open_loggers(config, folder.path) as loggers,
        stages.logging_to(loggers),
    ):
        trained: list[Any] = []
        rows: list[dict[str, Any]] = []
        inherited_key = ""
        for i, planned in enumerate(jobs):
            job = replace(planned, inherited=str(trained[-1].weights)) if trained else planned
            last = i == len(jobs) - 1
            key = job.key(data.fingerprint(), inherited_key or _content_key(job.inherited), accelerator)
            if last:
                done = stages.run_stage(job, folder.path, data, accelerator, key, rows)
            else:
                cache = Path(config["cache_dir"]).expanduser()
                done = stages.cached_stage(job, cache, data, accelerator, key, [])
                how = "found in the cache" if done.cached else f"trained in {done.seconds:.0f} s"
                print(f"{job.name}: {how}", file=sys.stderr, flush=True)
            trained.append(done)
            rows = [*rows, *done.rows]
            inherited_key = key
        results = _finish(config, folder.path, data, job, trained, accelerator, num_clusters, loggers)
    return _show(folder.path, results)


def _fit_data(config: dict[str, Any], data: Any) -> int:
    """Return the number of clusters; compare method and data now that the data are known."""
    method = config["method"]
    samples = data.pool(method.get("role", "train"), config["protocol"])
    if config["protocol"] == "split":
        data.pool("test", "split")
    labelled = bool((samples.labels >= 0).any())
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
    k = (method.get("labeler") or {}).get("k")
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
    return clusters or 1


def _jobs(config: dict[str, Any], data: Any, num_clusters: int) -> list[Any]:
    from scarcely.stages import Job

    jobs = []
    inherited = config["ckpt"]
    for stage in config["plan"]:
        if stage["method"] is None:  # a foreign checkpoint stands in for the stage
            inherited = stage["checkpoint"]
            continue
        jobs.append(
            Job(
                name=stage["name"],
                method=stage["method"],
                backbone=config["backbone"],
                data=config["data"],
                trainer=config["trainer"],
                seed=config["seed"],
                protocol=config["protocol"],
                num_clusters=num_clusters,
                num_classes=data.num_classes,
                inherited=inherited,
                whole=config["ckpt"] is not None,
                min_matched=config["min_matched"],
                fast=config["fast"],
                eval_every=config["eval_every"],
            )
        )
        inherited = None
    return jobs


def _content_key(path: str | None) -> str:
    if path is None:
        return ""
    import hashlib

    from scarcely import checkpoints

    with open(checkpoints.find(path), "rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()[:24]


def _finish(
    config: dict[str, Any],
    folder: Path,
    data: Any,
    job: Any,
    trained: list[Any],
    accelerator: str,
    num_clusters: int,
    loggers: list[Any],
) -> dict[str, Any]:
    """Score, write predictions and results, draw the report."""
    import numpy as np
    import torch

    from scarcely import checkpoints, evaluation, stages

    if torch.cuda.is_available() and accelerator == "cuda":
        torch.cuda.empty_cache()
    content = checkpoints.load(folder / "weights.pt")
    method = stages.build_method(job, data.input_shape, inherit=False)
    method.load_state_dict(content["state_dict"])
    outcome = evaluation.evaluate(method, data, config, torch.device(accelerator), num_clusters)
    write_atomically(folder / "predictions.npz", lambda file: np.savez_compressed(file, **outcome.arrays))
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
    }
    _report(config, folder, data, results)
    for logger in loggers:
        send_results(logger, results["metrics"], folder / "figures")
    # last of all: a folder with results.json is finished
    text = json.dumps(results, indent=1, default=str)
    write_atomically(folder / "results.json", text)
    return results


def _report(config: dict[str, Any], folder: Path, data: Any, results: dict[str, Any]) -> None:
    from scarcely.reports.evidence import Evidence
    from scarcely.reports.html import write_report

    samples = data.pool(config["method"].get("role", "train"), config["protocol"])
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

    device = torch.cuda.get_device_name(0) if accelerator == "cuda" else _processor()
    return {
        "scarcely": __version__,
        "commit": _commit(),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "device": device,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _commit() -> str | None:
    try:
        found = subprocess.run(
            ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"],
            capture_output=True,
            text=True,
            timeout=5,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() or None
