"""Mean Teacher and the Π-model: the average of the weights, whom the gradient reaches, what a batch holds."""

from __future__ import annotations

import pytest
import torch

from scarcely import checkpoints, stages
from scarcely.backbones.small import MLP
from scarcely.data.loader import Batch
from scarcely.errors import ConfigError
from scarcely.functional.ramp import sigmoid_rampup
from scarcely.methods.mean_teacher import MeanTeacher
from scarcely.methods.optimizer import Optimizer
from scarcely.methods.pi_model import PiModel
from scarcely.run import execute
from tests.oracles import scarce as oracle
from tests.runs import (
    TINY,
    compose,
    data_of,
    job_of,
    rows_without_times,
    same_weights,
    start_ranks,
    train_here,
)

BASE = (
    *(o for o in TINY if not o.startswith("batch_size")),
    "data.labels_per_class=3",
    "pretext=none",
    "batch_size=128",
    "epochs=3",
)


def method_of(kind=MeanTeacher, **changes):
    torch.manual_seed(0)
    return kind(MLP(6, (5, 7)), num_classes=3, optimizer=Optimizer(), **changes)


def batch_of(labels):
    generator = torch.Generator().manual_seed(1)
    views = tuple(torch.randn(len(labels), 6, generator=generator) for _ in range(2))
    return Batch(torch.arange(len(labels)), views, torch.tensor(labels))


@pytest.fixture
def epoch(monkeypatch):
    def choose(number):
        for kind in (MeanTeacher, PiModel):
            monkeypatch.setattr(kind, "current_epoch", property(lambda self: number))

    choose(0)
    return choose


@pytest.mark.parametrize("labels", [[0, 2, -1, -1], [-1] * 4, [1, 0, 2, 1]])
@pytest.mark.parametrize("kind", [MeanTeacher, PiModel])
def test_the_loss_is_that_of_the_papers(epoch, kind, labels):
    epoch(3)
    method, batch = method_of(kind, consistency=7.0, rampup=5).double(), batch_of(labels)
    batch = batch._replace(views=tuple(v.double() for v in batch.views))
    student = (method.student, method.student_head) if kind is MeanTeacher else (method.backbone, method.head)
    scores = student[1](student[0](batch.views[0]))
    other = method.head(method.backbone(batch.views[1]))
    expected = oracle.labelled_cross_entropy(scores, labels)
    expected = expected + 7 * sigmoid_rampup(3, 5) * oracle.consistency_mse(scores, other)
    torch.testing.assert_close(method.training_step(batch, 0).double(), expected, rtol=1e-4, atol=1e-5)


def test_the_gradient_reaches_the_student_alone(epoch):
    method = method_of(rampup=0)
    method.training_step(batch_of([0, 1, -1]), 0).backward()
    for name, parameter in method.named_parameters():
        assert (parameter.grad is not None) == name.startswith("student"), name
    trained = {id(p) for group in method.configure_optimizers().param_groups for p in group["params"]}
    assert trained == {id(p) for n, p in method.named_parameters() if n.startswith("student")}


def test_both_views_of_the_pi_model_get_a_gradient(epoch):
    method, batch = method_of(PiModel, rampup=0), batch_of([-1, -1, -1])
    views = tuple(v.requires_grad_() for v in batch.views)
    method.training_step(batch._replace(views=views), 0).backward()
    assert all(v.grad.abs().sum() > 0 for v in views)


def test_the_teacher_is_the_average_of_the_student(tmp_path):
    config = compose("method=mean_teacher", "method.decay=0.8", base=BASE)
    data = data_of(config)
    trajectory, teacher = [], []
    end = MeanTeacher.on_train_batch_end

    def watched(method, *arguments):
        end(method, *arguments)
        trajectory.append(method.student_head.weight.detach().double().clone())
        teacher.append(method.head.weight.detach().double().clone())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MeanTeacher, "on_train_batch_end", watched)
        built = []
        ready = MeanTeacher.ready

        def get_ready(method):
            built.append(method.head.weight.detach().double().clone())
            ready(method)

        patch.setattr(MeanTeacher, "ready", get_ready)
        train_here(job_of(config, data), tmp_path, data)
    expected = oracle.weight_average([built[0], *trajectory], 0.8)
    assert len(expected) == len(teacher) > 20
    for found, literal in zip(teacher, expected, strict=True):
        torch.testing.assert_close(found, literal, rtol=1e-4, atol=1e-5)


def test_the_student_starts_where_the_teacher_does():
    source, method = method_of(), method_of()
    torch.nn.init.normal_(source.head.weight)
    tensors = source.state_dict()
    method.backbone.load_state_dict(source.backbone.state_dict())
    method.head.load_state_dict(source.head.state_dict())
    method.adopt(tensors)
    assert torch.equal(method.student_head.weight, source.head.weight)
    pairs = zip(method.student.state_dict().values(), method.backbone.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("kind", ["mean_teacher", "pi_model"])
def test_a_batch_holds_so_many_labelled_samples(kind, tmp_path):
    config = compose(f"method={kind}", "method.labelled_batch_size=20", base=BASE)
    data = data_of(config)
    seen = []
    cls = {"mean_teacher": MeanTeacher, "pi_model": PiModel}[kind]
    step = cls.training_step

    def watched(method, batch, batch_idx):
        seen.append((int((batch.labels >= 0).sum()), len(batch.labels)))
        return step(method, batch, batch_idx)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cls, "training_step", watched)
        train_here(job_of(config, data), tmp_path, data)
    assert set(seen) == {(20, 128)}


@pytest.mark.parametrize("kind", ["mean_teacher", "pi_model"])
def test_all_views_are_random(kind):
    config = compose(f"method={kind}", base=BASE)
    data = data_of(config)
    assert data.augmentation.first_clean
    method = stages.build_method(job_of(config, data), data.input_shape)
    assert not method.augmentation(data.augmentation).first_clean
    assert data.augmentation.first_clean


@pytest.mark.parametrize("kind", ["mean_teacher", "pi_model"])
def test_an_interrupted_stage_ends_alike(kind, tmp_path):
    config = compose(f"method={kind}", base=BASE)
    data = data_of(config)
    job, cls = job_of(config, data), {"mean_teacher": MeanTeacher, "pi_model": PiModel}[kind]
    train_here(job, tmp_path / "whole", data)
    step = cls.training_step

    def interrupted(method, batch, batch_idx):
        if (method.current_epoch, batch_idx) == (1, 4):
            raise KeyboardInterrupt
        return step(method, batch, batch_idx)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cls, "training_step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train_here(job, tmp_path / "two", data)
    train_here(job, tmp_path / "two", data)
    assert same_weights(tmp_path / "two", tmp_path / "whole")
    assert rows_without_times(tmp_path / "two") == rows_without_times(tmp_path / "whole")


def test_two_processes_train_a_teacher(tmp_path):
    config = compose("method=mean_teacher", base=BASE)
    data = data_of(config)
    one = job_of(config, data)
    one = type(one)(**{**vars(one), "method": {**one.method, "labelled_batch_size": 32}})
    frozen = {**one.method, "freeze": 4, "frozen_bn": "eval"}
    one = type(one)(**{**vars(one), "method": frozen})
    two = type(one)(**{**vars(one), "trainer": {**one.trainer, "devices": 2}})
    train_here(one, tmp_path / "one", data)
    for process in start_ranks(two, tmp_path / "two"):
        assert process.wait() == 0, process.output
    for a, b in zip(*(rows_without_times(tmp_path / n) for n in ("one", "two")), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)
        assert a["step"] == b["step"]


def test_a_supervised_run_on_few_labels_learns_from_these_alone(tmp_path, monkeypatch):
    import scarcely.reports.html

    monkeypatch.setattr(scarcely.reports.html, "write_report", lambda evidence: None)
    base = (*BASE[:-1], "epochs=40")
    config = compose("method=supervised", f"run_dir={tmp_path / 'run'}", base=base)
    assert config["protocol"] == "split"
    results = execute({**config, "command": ""}, "run")
    assert results["metrics"]["train/accuracy"] > 0.3
    assert {"pseudo/accuracy", "test/accuracy", "test/ece"} <= set(results["metrics"])
    data = data_of(config)
    assert len(data.pool(job_of(config, data).role, "split")) == 30


def test_what_is_handed_on_and_refined_is_the_teacher():
    method = method_of()
    with torch.no_grad():
        for parameter in method.student.parameters():
            parameter += 1
    other = MLP(6, (5, 7))
    found = checkpoints.fill(other, method.state_dict(), source="teacher", least=0.5, where="refine")
    assert found.share == 1
    pairs = zip(other.state_dict().values(), method.backbone.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("kind", ["mean_teacher", "pi_model", "alternating_ssl"])
def test_classes_to_be_discovered_are_refused(kind, tmp_path):
    base = [o for o in BASE if not o.startswith(("data.labels", "epochs"))]
    config = compose(f"method={kind}", "data.labelled_classes=5", f"run_dir={tmp_path / 'run'}", base=base)
    with pytest.raises(ConfigError, match="knows all classes, and 5 of data=digits are to be discovered"):
        execute({**config, "command": ""}, "run")
    assert not (tmp_path / "run").exists()


def test_curves_score_the_unlabelled_samples_alone(tmp_path):
    config = compose("method=mean_teacher", "eval_every=1", base=BASE)
    data = data_of(config)
    counted = []
    share = MeanTeacher.share_of_all
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            MeanTeacher, "share_of_all", lambda self, hits: counted.append(int(hits[1])) or share(self, hits)
        )
        train_here(job_of(config, data), tmp_path, data)
    assert set(counted) == {len(data.pool("unlabelled", "split"))}


def test_a_subset_that_is_everything_has_no_unlabelled_part(tmp_path, monkeypatch):
    import scarcely.reports.html

    monkeypatch.setattr(scarcely.reports.html, "write_report", lambda evidence: None)
    base = [o for o in BASE if not o.startswith("data.labels")]
    data = data_of(compose("method=supervised", "protocol=split", base=base))
    data.write_labelled(tmp_path / "all.csv")
    config = compose(
        "method=supervised",
        f"data.labels_file={tmp_path / 'all.csv'}",
        f"run_dir={tmp_path / 'run'}",
        base=base,
    )
    results = execute({**config, "command": ""}, "run")
    assert "test/accuracy" in results["metrics"]
    assert "pseudo/accuracy" not in results["metrics"]
