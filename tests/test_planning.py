"""A plan says what a run needs: it is compared with the run."""

import json

import pytest
import torch
from hydra.utils import instantiate
from torch import nn

from scarcely import checkpoints
from scarcely.callbacks.history import read_rows
from scarcely.cli import main
from scarcely.data.outline import outline_of
from scarcely.errors import ConfigError, DataError
from scarcely.planning import _Watch, make_plan
from scarcely.reports.plan_table import format_bytes
from scarcely.run import execute
from tests.data.files import write_image
from tests.domains.runs import TINY as DOMAINS
from tests.domains.runs import write_release
from tests.runs import compose

DISCOVERY = ("method=ranking_statistics", "data.labelled_classes=5", "stages.supervised.epochs=2", "epochs=3")
IMAGES = ("trainer=cpu", "backbone=small_cnn", "backbone.width=2", "embedding_size=0")


def planned(*overrides, base=None):
    given = compose(*overrides) if base is None else compose(*overrides, base=base)
    return make_plan(given, "cpu")


def test_steps_samples_and_bytes_are_those_of_the_run(tmp_path, monkeypatch):
    plan = planned(*DISCOVERY)
    config = compose(*DISCOVERY, f"run_dir={tmp_path / 'run'}", f"cache_dir={tmp_path / 'cache'}")
    config["command"] = ""
    monkeypatch.setattr("scarcely.reports.html.write_report", lambda evidence: None)
    results = execute(config, "unused")
    assert [stage.name for stage in plan.stages] == [stage["name"] for stage in results["stages"]]
    files = {stage.name: path for stage, path in zip(plan.stages, weights_of_stages(tmp_path), strict=True)}
    for stage in plan.stages:
        content = checkpoints.load(files[stage.name])
        tensors = content["state_dict"].values()
        assert stage.cost.weights == sum(t.nbytes for t in tensors)
        rows = read_rows(files[stage.name].parent / "metrics.csv")
        assert stage.steps == [row for row in rows if row["stage"] == stage.name][-1]["step"]
        assert stage.epochs == content["epochs"]
        assert stage.cost.trained <= stage.cost.parameters
        assert stage.cost.optimizer >= stage.cost.gradients == 4 * stage.cost.trained
        assert 0 < stage.cost.seconds < 60
    assert plan.stages[-1].samples == 1438  # of the train part
    assert plan.data == 1797 * (8 * 8 + 8)  # and labels


def weights_of_stages(folder):
    return [*(folder / "cache").rglob("weights.pt"), folder / "run" / "weights.pt"]


def test_what_the_forward_pass_keeps_is_counted_once_and_without_the_weights():
    net = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    watch = _Watch("cpu")
    with watch._count(net):
        x = torch.randn(5, 4)
        loss = net(x).sum()
    loss.backward()
    assert watch.kept == 4 * (
        5 * 4 + 5 * 3
    )  # the input, and the output of the ReLU for it and the next layer


def test_two_devices_share_a_batch_and_take_as_many_steps():
    one, two = (planned("epochs=2", f"trainer.devices={n}").stages[-1] for n in (1, 2))
    assert (one.steps, one.batch_size) == (two.steps, two.batch_size) == (14, 256)
    assert (one.cost.measured, two.cost.measured) == (256, 128)


def test_a_part_of_a_large_step_is_measured_and_stands_for_all_of_it():
    plan = planned("data=cifar10", "data.root=nowhere", "pretext=none", "epochs=1", base=IMAGES)
    (stage,) = plan.stages
    assert stage.cost.measured == 64
    assert stage.batch_size == 256
    assert plan.data == 60_000 * 32 * 32 * 3


# -- data that are not decoded or not there ------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "samples", "steps"),
    [
        (("data=cifar10", "data.labelled_classes=5"), {"supervised": 25_000, "joint": 50_000}, 2 * 195),
        (("data=cifar10", "data.labelled_classes=[cat,3]"), {"supervised": 10_000, "joint": 50_000}, 2 * 78),
        (("data=imagenet", "data.size=32"), {"supervised": 882 * 1281, "joint": 912 * 1281}, 2 * 8826),
    ],
)  # fmt: skip
def test_published_sizes_stand_for_data_that_are_not_there(given, samples, steps, tmp_path):
    method = ("method=ranking_statistics", "pretext=none", "epochs=1", "batch_size=128")
    earlier = ("stages.supervised.epochs=2", "stages.supervised.batch_size=128", "protocol=split")
    plan = planned(*method, *earlier, *given, f"data.root={tmp_path}", base=IMAGES)
    assert {stage.name: stage.samples for stage in plan.stages} == samples
    assert plan.stages[0].steps == steps
    assert plan.exact == ("imagenet" not in given[0])


def test_labels_that_may_be_seen_are_those_of_the_run():
    given = (
        "method=mean_teacher",
        "data=cifar10",
        "data.root=nowhere",
        "data.labels_per_class=4",
        "epochs=2",
    )
    plan = planned(*given, "epochs=2", base=IMAGES)
    assert plan.stages[-1].samples == 50_000


def test_own_images_are_counted_and_none_is_decoded(tmp_path, monkeypatch):
    monkeypatch.setenv("SCARCELY_CACHE", str(tmp_path / "cache"))
    for number in range(24):
        folder = (
            tmp_path / "photos" / ("train" if number < 18 else "test") / ("cat", "dog", "emu")[number % 3]
        )
        write_image(folder / f"{number}.png", number)
    (tmp_path / "photos" / "train" / "cat" / "broken.png").write_text("no image")
    given = ("data=imagefolder", f"data.root={tmp_path / 'photos'}", "method=supervised", "epochs=3")
    plan = planned(*given, "batch_size=8", "data.labels_per_class=2", base=IMAGES)
    (stage,) = plan.stages
    assert (stage.samples, stage.steps) == (6, 3)
    assert not (tmp_path / "cache").exists()


def test_small_classes_of_ones_own_are_no_reason_to_refuse(tmp_path):
    for number in range(30):
        for image in range(1 if number == 7 else 6):
            write_image(tmp_path / "train" / f"{number:02}" / f"{image}.png", number)
        write_image(tmp_path / "test" / f"{number:02}" / "0.png", number)
    given = ("data=imagefolder", f"data.root={tmp_path}", "method=supervised", "epochs=2")
    plan = planned(*given, "data.labels_per_class=1", "batch_size=4", base=IMAGES)
    assert (plan.stages[0].samples, plan.stages[0].steps) == (30, 14)
    plan = planned(*given, "data.labels_per_class=1", "batch_size=64", base=IMAGES)
    assert plan.stages[0].cost.measured == 30, "a step takes all there are"
    with pytest.raises(DataError, match="only 1 training sample, and 2 labels"):
        planned(*given, "data.labels_per_class=2", "batch_size=4", base=IMAGES)  # as the run does


def test_stand_ins_differ_and_take_no_memory():
    config = compose("data=imagenet", "data.root=nowhere", base=IMAGES)
    data = instantiate(config["data"], _convert_="all")
    outline = outline_of(data)
    assert outline.nbytes > 170e9
    outline.fill(data, most=1000)
    train = data.read()["train"]
    assert 1000 <= len(train) < 1100 + 2 * 882
    assert train.labels.bincount().min() >= 2, "some of each class"
    assert train.inputs.shape[1:] == (224, 224, 3)
    assert train.inputs.untyped_storage().nbytes() < 1e6
    assert not torch.equal(train.inputs[0], train.inputs[1])
    assert train.labels.unique().tolist() == list(range(882))


# -- several domains -----------------------------------------------------------------------------


def test_each_domain_is_a_stage(tmp_path, monkeypatch):
    monkeypatch.setenv("SCARCELY_CACHE", str(tmp_path / "cache"))
    given = ("method=parallel_adapters", f"data.root={write_release(tmp_path)}", "stages.source.epochs=4")
    plan = planned(*given, "stages.source.batch_size=6", base=DOMAINS)
    names = ["birds supervised", "gtsrb parallel_adapters", "signs parallel_adapters"]
    assert [stage.name for stage in plan.stages] == names
    assert [(stage.samples, stage.steps) for stage in plan.stages] == [
        (26, 16),
        (26, 2),
        (26, 2),
    ]  # train and val, the test part being scored
    assert plan.stages[1].cost.trained < plan.stages[0].cost.trained


# -- the command ---------------------------------------------------------------------------------


def test_nothing_is_written_and_the_table_is_printed(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = ["plan=true", "data=digits", "trainer=cpu", "epochs=2", "backbone.width=4", "batch_size=599"]
    assert main(given) == 0
    printed = capsys.readouterr().out
    assert "cluster" in printed
    assert "1,797" in printed
    assert " 6 " in printed
    assert list(tmp_path.iterdir()) == []


def test_a_plan_of_nothing_is_refused(tmp_path):
    (tmp_path / "weights.pt").touch()
    with pytest.raises(ConfigError, match="plan = 3"):
        compose("plan=3")
    config = compose("method=normgrad", "data=shapes", "ckpt=module:function", base=("trainer=cpu",))
    with pytest.raises(ConfigError, match="trains nothing"):
        make_plan(config, "cpu")


def test_a_classifier_that_is_trained_to_be_explained_has_a_plan():
    shapes = ("data=shapes", "data.image_size=64", "data.train_images=30", "data.test_images=4", *IMAGES)
    given = ("method=normgrad", *shapes, "stages.multilabel.epochs=3", "stages.multilabel.batch_size=8")
    (classifier,) = planned(*given, base=()).stages
    assert (classifier.name, classifier.samples, classifier.steps) == ("multilabel", 30, 9)
    assert classifier.cost.seconds > 0


@pytest.mark.parametrize(
    ("count", "told"), [(0, "0 B"), (999, "999 B"), (999.7, "1 kB"), (3.2e6, "3.2 MB"), (1.83e11, "183 GB")]
)
def test_bytes_are_written_as_people_read_them(count, told):
    assert format_bytes(count) == told


def test_a_plan_is_plain_values():
    content = planned("epochs=1").content()
    assert json.loads(json.dumps(content))["stages"][0]["name"] == "cluster"
