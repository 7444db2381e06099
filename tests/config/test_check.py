"""Everything that can be known wrong is told before anything is read or built."""

import pytest

from scarcely.config.check import check
from scarcely.errors import ConfigError
from tests.config.composing import composed, sound

DIGITS = ()
MNIST = ("data=mnist",)  # its recipe has a pretext
TFIDF = ("data=tfidf",)
DISCOVERY = ("method=ranking_statistics",)


def put(config, key, value):
    """Set a dotted key, in the plan too: the last stage and the method are one."""
    *parents, last = key.split(".")
    for parent in parents:
        config = config[int(parent) if isinstance(config, list) else parent]
    config[last] = value


def complaint(overrides, **values):
    """Return the error about a configuration with these values; a double underscore is a dot."""
    config = composed(*overrides)
    assert config["plan"][-1]["method"] is config["method"]
    for key, value in values.items():
        put(config, key.replace("__", "."), value)
    with pytest.raises(ConfigError) as error:
        check(config)
    return error.value


@pytest.mark.parametrize(
    "overrides", [DIGITS, MNIST, TFIDF, ("method=kmeans",), ("method=supervised",)], ids=str
)
def test_what_ships_is_sound(overrides):
    sound(*overrides)


WRONG = {
    # the root
    "seed": ("x", -1, 1.5, None, True),
    "protocol": ("both", None),
    "pretext": (1, None),
    "ckpt": (3,),
    "num_clusters": (0, -1, 2.5, "ten"),
    "epochs": (-1, 1.5, "many"),
    "batch_size": (0, -1, "x"),
    "eval_every": (0,),
    "resume": ("yes", 1),
    "fast": ("true",),
    "min_matched": (-0.1, 1.1, "all"),
    "embedding_size": (-1,),
    "run_dir": (3,),
    "stages": (3, None),
    # groups with a schema of their own
    "trainer.devices": (0, "all"),
    "trainer.accelerator": ("tpu",),
    "trainer.precision": (16, "fp16"),
    "trainer.threads": (-1,),
    "trainer.gradient_clip": (0, -1.0),
    "trainer.compile": (1,),
    "logger.name": ("mlflow", None),
    # components, whose signatures say it
    "method.composition": ("cutmix",),
    "method.space": ("logits",),
    "method.beta": (0, -1),
    "method.consistency": (-1,),
    "method.hidden": (0, "big"),
    "method.frozen_bn": (True,),
    "method.labeler": ("knn", None, 3),
    "method.labeler.k": (2, 0, 20.5, "20"),
    "method.labeler._partial_": (1, "x"),
    "method.optimizer": ("adam", None),
    "method.optimizer.name": ("lbfgs",),
    "method.optimizer.lr": (0, -0.1, "fast", None, float("nan")),
    "method.optimizer.momentum": (1.0, -0.1),
    "method.optimizer.milestones": (140, [0], ["a"], [1.5]),
    "method.optimizer.gamma": (0, 1.1),
    "method.task": ("regression",),
    "method.epochs": (-1,),
    "method.by_kind": ({"sounds": {}}, 3),
    "data.size": (0, "big"),
    "data.kind": ("vectors",),
    "data.root": ("photos",),  # these data have no files
    "data.resident": ("gpu",),
    "data.augmentation.padding": (-1, 1.5),
    "data.augmentation.pad_mode": ("mirror",),
    "data.augmentation.degrees": (-1, 181),
    "data.augmentation.shear": (-1, 90),
    "data.augmentation.scale": (-0.1, 1),
    "data.augmentation.first_clean": ("both",),
    "data.augmentation.mean": (0.5, ["a"]),
    "backbone.width": (0, "wide"),
}


@pytest.mark.parametrize("key", WRONG)
def test_a_wrong_value_is_named_with_its_place_and_what_would_be_right(key):
    for value in WRONG[key]:
        error = complaint(DIGITS, **{key.replace(".", "__"): value})
        assert error.where == key, value
        assert error.what.startswith(f"{key} = "), value
        assert error.instead


def test_a_setting_of_a_method_that_others_have_too_has_its_own_range():
    scarce = ("method=mean_teacher", "data.labels_per_class=5")
    assert complaint(scarce, method__decay={"photos": 0.5}).where == "method.decay"
    assert complaint(scarce, method__decay="size").instead == "a number at least 0 and at most 1"
    many = ("method=parallel_adapters", "data=decathlon")
    assert "leave data.domain out" in complaint(many, data__domain="gtsrb").instead
    assert complaint(many, method__decay="large").where == "method.decay"
    sound(*many, "method.decay=size")


def test_a_list_of_evaluations_may_be_left_out():
    config = composed("method=normgrad", "data=shapes")
    put(config, "method.evaluations", None)
    check(config)


@pytest.mark.parametrize(
    ("key", "suggested"),
    [
        ("sed", "seed"),
        ("trainer.device", "trainer.devices"),
        ("logger.projekt", "logger.project"),
        ("method.consistancy", "method.consistency"),
        ("method.batchsize", "method.batch_size"),
        ("method.labeler.kk", "method.labeler.k"),
        ("method.optimizer.weightdecay", "method.optimizer.weight_decay"),
        ("data.augmentation.pading", "data.augmentation.padding"),
        ("backbone.num_feature", "backbone.num_features"),
    ],
)
def test_an_unknown_key_is_told_with_what_was_probably_meant(key, suggested):
    error = complaint(DIGITS, **{key.replace(".", "__"): 1})
    assert error.what == f"there is no setting {key!r}"
    assert error.where == key
    assert suggested in error.instead.split(" or ")


def test_nothing_that_is_no_setting_is_suggested():
    error = complaint(DIGITS, method__labeler__feature=1)
    assert "features" not in error.instead  # the tensor that the labeler is called with
    assert "_target_" not in complaint(DIGITS, method__target=1).instead


@pytest.mark.parametrize("key", ["backbone", "num_classes", "num_clusters", "input_shape"])
def test_what_the_run_supplies_is_no_setting_of_a_method(key):
    error = complaint(DIGITS, **{f"method__{key}": 3})
    assert error.where == f"method.{key}"
    assert ("num_clusters" in error.instead) == (key == "num_clusters")


@pytest.mark.parametrize(
    "key", ["seed", "trainer", "trainer.devices", "method.labeler", "data.augmentation.mean"]
)
def test_a_missing_key_is_told(key):
    config = composed()
    *parents, last = key.split(".")
    inner = config
    for parent in parents:
        inner = inner[parent]
    del inner[last]
    with pytest.raises(ConfigError) as error:
        check(config)
    assert f"{key} is missing" in error.value.what
    assert error.value.instead


@pytest.mark.parametrize("group", ["method", "data", "backbone"])
@pytest.mark.parametrize("target", [None, 3, "LSDC", "scarcely.nowhere.Thing", "scarcely.seeds.nothing"])
def test_a_target_that_is_none_is_told(group, target):
    assert complaint(DIGITS, **{f"{group}___target_": target}).where.startswith(group)


def test_all_problems_are_told_in_one_message():
    error = complaint(DIGITS, seed="x", method__labeler__k=0, data__siz=3, trainer__devices=0)
    for part in ("4 things", "seed = 'x'", "method.labeler.k = 0", "data.siz", "trainer.devices = 0"):
        assert part in str(error)


def test_a_short_form_is_told_once():
    config = composed("epochs=-1")
    with pytest.raises(ConfigError) as error:
        check(config)
    assert error.value.where == "epochs"


# -- combinations, looked at once each value is sound --------------------------------------------


def test_combinations_wait_until_each_value_is_sound():
    error = complaint(DIGITS, seed="x", method__labeler__k=300)
    assert error.where == "seed"


def test_neighbours_must_fit_into_a_batch():
    assert "256" in complaint(("batch_size=256",), method__labeler__k=256).what
    check(composed("batch_size=256", "method.labeler.k=255"))


def test_neighbours_must_fit_into_the_share_of_a_device():
    two = ("trainer=ddp", "batch_size=256", "method.labeler.k=128")
    assert complaint(two).instead.startswith("k below 128")
    sound(*two, "method.pairs=global")  # pairs of the whole batch


def test_a_batch_is_shared_evenly():
    error = complaint(("trainer=ddp", "trainer.devices=3", "batch_size=256"))
    assert error.where == "batch_size, trainer.devices"
    assert error.instead == "a multiple of 3"


def test_a_batch_holds_whole_groups():
    error = complaint(("method=prototypical", "batch_size=205"))
    assert error.where == "batch_size, method.group"
    assert error.instead.endswith("multiple of 10")
    earlier = (*DISCOVERY, "pretext=prototypical", "stages.pretext.batch_size=205")
    assert complaint(earlier).where == "stages.pretext.batch_size, stages.pretext.group"
    sound("method=prototypical", "batch_size=200", "trainer=ddp", "trainer.devices=4")
    assert complaint(("method=prototypical", "batch_size=210", "trainer=ddp")).instead.endswith("of 20")


def test_global_pairs_need_several_devices():
    assert complaint(("method.pairs=global",)).where == "method.pairs"


def test_half_precision_needs_a_gpu():
    assert complaint(("trainer=cpu", "trainer.precision=16-mixed")).where == "trainer.precision"
    sound("trainer=cpu", "trainer.precision=bf16-mixed")


def test_vectors_have_no_patches():
    assert "RICAP" in complaint((*TFIDF, "method.composition=ricap")).what


def test_views_that_are_turned_too_far_hide_the_rotation():
    turned = ("pretext=rotnet", "data.augmentation.degrees=45")
    assert complaint(turned).where == "data.augmentation.degrees"
    sound("pretext=rotnet", "data.augmentation.degrees=44")
    sound("pretext=none", "data.augmentation.degrees=180")


def test_vectors_have_no_rotations():
    assert complaint(("data=tfidf", "method=rotnet")).where == "method"
    error = complaint((*TFIDF, "pretext=rotnet"))
    assert error.where == "pretext"
    assert "denoising" in error.instead


def test_vectors_need_a_backbone_for_vectors():
    assert complaint((*TFIDF, "backbone=resnet18")).instead == "backbone=mlp"
    sound("backbone=mlp")  # images are flattened


def test_frozen_blocks_need_weights_worth_keeping(tmp_path):
    for freeze in (3, "conv1"):
        error = complaint(DIGITS, method__freeze=freeze)
        assert error.where == "method.freeze"
        assert "random" in error.what
    assert complaint(("method=supervised", "method.freeze=1")).where == "method.freeze"
    sound("method.freeze=2", "pretext=rotnet")
    weights = tmp_path / "weights.pt"
    weights.touch()
    sound("method.freeze=2", f"pretext={weights}")
    sound("method.freeze=2", f"ckpt={weights}")


def test_a_method_without_clusters_takes_no_number_of_them():
    assert complaint(("method=supervised", "num_clusters=5")).where == "num_clusters"
    sound("method=kmeans", "num_clusters=5")


def test_a_count_of_new_classes_needs_its_stage(tmp_path):
    weights = tmp_path / "weights.pt"
    weights.touch()
    for given, where in [
        ((f"ckpt={weights}",), "num_new"),
        (("method.before=[pretext,supervised]",), "num_new, method.before"),
    ]:
        error = complaint((*DISCOVERY, "num_new=auto", *given))
        assert error.where == where
        assert "num_new=K" in error.instead
        sound(*DISCOVERY, "num_new=3", *given)
    sound(*DISCOVERY, "num_new=auto", f"pretext={weights}")


def test_a_count_gives_no_weights_to_freeze():
    only = (*DISCOVERY, "num_new=auto", "pretext=none", "method.before=[pretext,class_count]")
    assert complaint((*only, "method.freeze=2")).where == "method.freeze"
    sound(*DISCOVERY, "num_new=auto", "pretext=none", "method.freeze=2")  # the supervised stage gives some


@pytest.mark.parametrize("method", ["kcl", "mcl"])
def test_pairs_are_labelled_by_the_stage_before(method, tmp_path):
    for before, found in [
        ("[pretext]", "there is none"),
        ("[pretext,similarity,supervised]", "that trains is supervised"),
    ]:
        error = complaint((f"method={method}", "pretext=none", f"method.before={before}"))
        assert error.where == "method.before"
        assert found in error.what
        assert "similarity" in error.instead
    sound(f"method={method}", "num_new=auto")  # the count comes between
    sound(f"method={method}", "method.before=[pretext]", "pretext=similarity")
    weights = tmp_path / "weights.pt"  # of which network is seen when it is read
    weights.touch()
    sound(f"method={method}", f"ckpt={weights}")
    sound(f"method={method}", f"pretext={weights}", "method.before=[pretext]")


def test_a_method_without_pretext_takes_none():
    assert complaint(("method=rotnet", "pretext=denoising")).where == "pretext"


@pytest.mark.parametrize(
    ("overrides", "where"),
    [
        (("++stages.pretxt.epochs=3",), "stages.pretxt"),
        (("++stages.pretext=3",), "stages.pretext"),
        (("++stages.cluster.epochs=3", *MNIST), "stages.cluster.epochs"),  # the last stage: epochs=3
        (("++stages.pretext.epochs=3",), "stages.pretext.epochs"),  # digits have no pretext
        (("++stages.pretext.epochs=-3", *MNIST), "stages.pretext.epochs"),
        (("++stages.pretext.epoch=3", *MNIST), "stages.pretext.epoch"),
        (("++stages.pretext.optimizer.lr=0", *MNIST), "stages.pretext.optimizer.lr"),
        (("++stages.pretext.epochs=3", "method=rotnet"), "stages.pretext.epochs"),  # its own stage's name
    ],
)
def test_settings_of_a_stage_that_is_not_trained_are_not_ignored(overrides, where):
    assert complaint(overrides).where == where


def test_settings_of_a_stage_that_a_checkpoint_replaces_are_not_ignored(tmp_path):
    weights = tmp_path / "weights.pt"
    weights.touch()
    for given in (f"ckpt={weights}", f"pretext={weights}"):
        error = complaint((*MNIST, given, "stages.pretext.epochs=3"))
        assert error.where == "stages.pretext.epochs"
        assert str(weights) in error.what


@pytest.mark.parametrize("key", ["ckpt", "pretext"])
def test_a_checkpoint_must_be_there(key, tmp_path):
    error = complaint((f"{key}={tmp_path}/none.pt",))
    assert error.where == key
    assert "none.pt" in error.what
    sound(f"{key}={tmp_path}")


@pytest.mark.parametrize("key", ["run_dir", "output_dir", "cache_dir"])
def test_no_folder_lies_below_a_file(key, tmp_path):
    file = tmp_path / "file"
    file.touch()
    error = complaint((f"{key}={file}/a/b",))
    assert error.where == key
    assert f"{file} is a file" in error.what
    assert not (tmp_path / "new").exists()
    sound(f"{key}={tmp_path}/new/folder")
    assert not (tmp_path / "new").exists(), "looking must not make folders"
