"""No training step makes the host wait for the device; the CPU stands in for it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from hydra.utils import get_class
from omegaconf import OmegaConf
from torch.utils._python_dispatch import TorchDispatchMode

from scarcely.backbones.resnet26 import ResNet26
from scarcely.backbones.small import MLP, SmallCNN
from scarcely.config.paths import conf_dir
from scarcely.data.loader import Batch
from scarcely.data.together import Turn
from scarcely.functional import pairwise
from scarcely.methods.adapters import Adapters
from scarcely.methods.alternating_ssl import AlternatingSSL
from scarcely.methods.base import Method
from scarcely.methods.denoising import Denoising
from scarcely.methods.domain_prediction import DomainPrediction
from scarcely.methods.dtc import DTC
from scarcely.methods.finetune import FineTune
from scarcely.methods.kcl import KCL
from scarcely.methods.lsdc import LSDC
from scarcely.methods.lwf import LwF
from scarcely.methods.mcl import MCL
from scarcely.methods.mean_teacher import MeanTeacher
from scarcely.methods.multilabel import Multilabel
from scarcely.methods.optimizer import Optimizer
from scarcely.methods.pi_model import PiModel
from scarcely.methods.prototypical import Prototypical
from scarcely.methods.ranking_statistics import RankingStatistics
from scarcely.methods.rotnet import RotNet
from scarcely.methods.round_robin import RoundRobin
from scarcely.methods.similarity import Similarity
from scarcely.methods.supervised import Supervised
from scarcely.methods.svd_adapters import SVDAdapters
from scarcely.profiling import Waits, line_of_caller

N, CLASSES, KNOWN, SIDE = 12, 5, 3, 8
OPTIMIZER = Optimizer(momentum=0.9)


def small() -> SmallCNN:
    return SmallCNN(width=4, num_features=8, in_channels=3, image_size=SIDE)


def residual() -> ResNet26:
    return ResNet26(in_channels=3, width=4, blocks=1)


def lsdc(labeler: str, **settings) -> LSDC:
    function = LABELERS[labeler]
    return LSDC(small(), CLASSES, CLASSES, OPTIMIZER, function, freeze=1, rampup=0, **settings)


def ranking(**settings) -> RankingStatistics:
    labeler = partial(pairwise.rank_adjacency, k=3)
    return RankingStatistics(
        small(), KNOWN, CLASSES - KNOWN, CLASSES, OPTIMIZER, labeler, freeze=1, rampup=0, **settings
    )


def alternating() -> AlternatingSSL:
    method = AlternatingSSL(small(), CLASSES, OPTIMIZER, OPTIMIZER)
    method._bank = {name: torch.full((N, CLASSES), 0.2) for name in ("targets", "previous", "current")}
    return method


def dtc() -> DTC:
    method = DTC(small(), KNOWN, CLASSES - KNOWN, CLASSES, OPTIMIZER, freeze=1)
    method.target = torch.full((N, CLASSES - KNOWN), 0.5)
    return method


def multilabel() -> Multilabel:
    method = Multilabel(small(), CLASSES, OPTIMIZER)
    method.register_buffer("targets", torch.arange(N * CLASSES).view(N, CLASSES).remainder(3).sub(1).char())
    return method


def round_robin() -> RoundRobin:
    decays = {"decay": {"a": 1e-3, "b": 1e-3}, "norm_decay": 0.0, "head_decay": 0.0}
    return RoundRobin(residual(), OPTIMIZER, {"kind": "parallel", **decays}, {"a": CLASSES, "b": 2}, "a")


LABELERS = {
    "knn": partial(pairwise.knn_adjacency, k=4),
    "knn of directions": partial(pairwise.knn_adjacency, k=4, normalize=True),
    "sne": partial(pairwise.sne_adjacency, threshold=0.1, temperature=1.0),
    "cosine": partial(pairwise.cosine_adjacency, threshold=0.9),
    "l2": partial(pairwise.l2_adjacency, threshold=0.5),
    "rank": partial(pairwise.rank_adjacency, k=3),
}
METHODS: dict[str, Callable[[], Method]] = {
    **{f"lsdc {labeler}": partial(lsdc, labeler) for labeler in LABELERS},
    "lsdc mixup": partial(lsdc, "knn", composition="mixup", mix_transposed=True, space="prediction"),
    "ranking_statistics": ranking,
    "ranking_statistics incremental": partial(ranking, incremental=True, hidden=6),
    "kcl": lambda: KCL(small(), KNOWN, CLASSES - KNOWN, CLASSES, OPTIMIZER, freeze=1),
    "mcl": lambda: MCL(small(), KNOWN, CLASSES - KNOWN, CLASSES, OPTIMIZER, freeze=1),
    "dtc": dtc,
    "similarity": lambda: Similarity(small(), OPTIMIZER, positive_share=0.5),
    "prototypical": lambda: Prototypical(small(), CLASSES, OPTIMIZER, group=4, scale=10.0),
    "alternating_ssl": alternating,
    "mean_teacher": lambda: MeanTeacher(small(), CLASSES, OPTIMIZER),
    "pi_model": lambda: PiModel(small(), CLASSES, OPTIMIZER),
    "supervised": lambda: Supervised(small(), CLASSES, OPTIMIZER, label_smoothing=0.1),
    "multilabel": multilabel,
    "rotnet": lambda: RotNet(small(), OPTIMIZER),
    "denoising": lambda: Denoising(MLP(in_features=3 * SIDE**2, widths=[8, 4]), OPTIMIZER, (3, SIDE, SIDE)),
    "series adapters": lambda: Adapters(residual(), CLASSES, 2, OPTIMIZER, kind="series", dropout=0.2),
    "parallel adapters": lambda: Adapters(residual(), CLASSES, 2, OPTIMIZER, kind="parallel"),
    "svd adapters": lambda: SVDAdapters(residual(), CLASSES, 2, OPTIMIZER),
    "finetune": lambda: FineTune(residual(), CLASSES, 2, OPTIMIZER, last=2),
    "lwf": lambda: LwF(residual(), CLASSES, 2, OPTIMIZER),
    "round_robin": round_robin,
    "domain_prediction": lambda: DomainPrediction(residual(), 2, OPTIMIZER),
}
# what numpy labels on the CPU, where there is no other device to wait for
ON_HOST = {"lsdc rank", "ranking_statistics", "ranking_statistics incremental"}
# no gradient descent
NOT_TRAINED = {"kmeans", "class_count", "normgrad"}


def batch_for(method: Method):
    """Return a batch of random images, half of their labels hidden where a method may meet such."""
    views = tuple(torch.randn(N, 3, SIDE, SIDE) for _ in range(method.views))
    labels = torch.arange(N) // 4
    if isinstance(method, RankingStatistics | MeanTeacher | PiModel):
        labels = labels.where(torch.arange(N) % 2 == 0, -1)
    if isinstance(method, DomainPrediction):
        labels = labels.clamp(max=1)
    batch = Batch(torch.arange(N), views, labels)
    return Turn("a", batch) if isinstance(method, RoundRobin) else batch


def step(method: Method, batch) -> torch.Tensor:
    """Take a step as Lightning does."""
    optimizer = method.configure_optimizers()
    optimizer.zero_grad()
    loss = method.training_step(batch, 0)
    loss.backward()
    optimizer.step()
    return loss


@pytest.mark.parametrize("name", METHODS)
def test_no_step_asks_the_device_for_a_value(name):
    torch.manual_seed(0)
    method = METHODS[name]().train()
    batch = batch_for(method)
    with Waits() as waits:
        loss = step(method, batch)
    assert loss.isfinite()
    assert not waits.found, waits.found


class MadeOnHost(TorchDispatchMode):
    """Note the lines that make a tensor of Python's numbers: a GPU gets a copy, which the host awaits."""

    def __init__(self):
        super().__init__()
        self.lines = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func._schema.name == "aten::lift_fresh":
            self.lines.append(line_of_caller())
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", [name for name in METHODS if name not in ON_HOST])
def test_no_step_makes_tensors_on_the_host(name):
    torch.manual_seed(0)
    method = METHODS[name]().train()
    batch = batch_for(method)
    with MadeOnHost() as made:
        method.training_step(batch, 0)
    drawn = [line for line in made.lines if line.endswith("_on_device")]
    assert made.lines == drawn  # numpy draws how views are composed; that copy nobody waits for


def test_what_labels_by_rank_on_a_gpu_asks_for_no_value():
    ties = torch.zeros(6, 5)  # on the CPU these are ranked as on a GPU
    with MadeOnHost() as made, Waits() as waits:
        pairwise.rank_adjacency(ties, k=3)
    assert not waits.found
    assert not made.lines


def test_every_method_that_is_trained_is_looked_at():
    trained = {
        get_class(OmegaConf.load(path)["_target_"])
        for path in (conf_dir() / "method").glob("*.yaml")
        if path.stem not in NOT_TRAINED
    }
    assert trained <= {type(build()) for build in METHODS.values()}
