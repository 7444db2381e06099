"""What phase one of alternating optimisation costs, against phase two of the same cycle."""

from __future__ import annotations

from typing import Any, cast

import torch

from scarcely.bench.input import Inputs
from scarcely.bench.rows import Row, Settings, Spread, clock_of, endless, wait_for
from scarcely.bench.step import last_job
from scarcely.config.compose import compose_run
from scarcely.methods.alternating_ssl import AlternatingSSL
from scarcely.stages import build_method

LABELLED, UNLABELLED = 100, 49_900  # CIFAR-10 with ten labels a class
MOST = 0.02  # of the time of a cycle


def measure(settings: Settings, threads: int) -> list[Row]:
    """Time phase one whole and a step of phase two, of which a cycle has as many as its samples ask for."""
    device, batch = settings.device, settings.batch
    inputs = Inputs.make(max(LABELLED, batch, settings.images), batch, device)
    sizes = [f"backbone.width={settings.width}", "method.freeze=2", "data.labels_per_class=10"]
    config = compose_run(["method=alternating_ssl", "data=cifar10", *sizes])
    job = last_job(config, config["method"]["epochs"], 10)
    method = cast(AlternatingSSL, build_method(job, (3, 32, 32)).to(device))
    optimizer: Any = method.configure_optimizers()
    rows = len(inputs.loader.samples)
    method._bank = {
        part: torch.full((rows, 10), 0.1, device=device) for part in ("targets", "previous", "current")
    }
    batches, clock = endless(inputs.loader), clock_of(settings)
    labelled = [next(batches) for _ in range(-(-LABELLED // batch))]

    def phase_one() -> None:
        method.fit_classifier(0, labelled, job.method["batch_size"])

    def step() -> None:
        optimizer.zero_grad()
        method.training_step(next(batches), 0).backward()
        optimizer.step()

    def seconds(program: Any) -> float:
        wait_for(device)
        started = clock()
        program()
        wait_for(device)
        return clock() - started

    steps = round(method.split * UNLABELLED) // batch * (job.epochs // method.cycles)
    for program in (phase_one, step):
        program()  # to warm up
    ours = Spread.of([seconds(phase_one) for _ in range(settings.repeats)])
    one = Spread.of([seconds(step) for _ in range(settings.repeats)])
    cycle = Spread(one.median * steps, one.low * steps, one.high * steps)
    return [
        Row.of_times(
            ours,
            cycle,
            least=1 / MOST - 1,
            measure="phases",
            name=f"phase one, ResNet-18, {LABELLED} labels; plain: phase two, {steps} steps of {batch}",
            threads=threads,
            device=device,
            note=f"{ours.median / (ours.median + cycle.median):.2%} of a cycle",
        )
    ]
