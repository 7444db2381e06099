"""What a command composes: the paper's values for a pair, under whatever the user overrides."""

import itertools
import re
import shutil
import tomllib
from pathlib import Path

import pytest
import yaml
from omegaconf import OmegaConf

from scarcely.config import compose, paths
from scarcely.config.check import check
from scarcely.config.compose import compose_run, run_name, without_recipe
from scarcely.config.help import options_of
from scarcely.errors import ConfigError
from tests.config.composing import composed, sound

ROOT = Path(__file__).resolve().parents[2]
CONF = ROOT / "conf"
METHODS, DATA, LABELERS = options_of("method"), options_of("data"), options_of("method/labeler")
VECTORS = {"two_moons", "tfidf", "reuters10k"}
OBJECTS = {"shapes", "voc", "coco", "objects"}
NEEDS = {m: OmegaConf.load(CONF / f"method/{m}.yaml").get("needs") or [] for m in METHODS}
SEVERAL = {"decathlon", "digit_domains"}  # data sets of several domains
OF_DOMAINS = {m for m in METHODS if OmegaConf.load(CONF / f"method/{m}.yaml").get("task") == "domains"}
EXPERIMENTS = options_of("experiment")


# -- every method, data set and labeler ----------------------------------------------------------


# Images and vectors are composed with all methods, several domains with theirs, other data sets with those
# that have a recipe; the pairs that are left, which differ from these in names alone, by the slow tests.
OF_EVERY_SORT = {"digits", "tfidf"}


def pairs(data, quick):
    """The methods that are composed with a data set by the quick tests, or else those that are left."""
    own = {path.stem.removesuffix(f"-{data}") for path in (CONF / "recipe").glob(f"*-{data}.yaml")}
    own |= OF_DOMAINS if data in SEVERAL else set()
    chosen = set(METHODS) if data in OF_EVERY_SORT else own
    return sorted(chosen if quick else set(METHODS) - chosen)


def check_pairs(data, *, quick):
    given = [f"data={data}"]
    for method in pairs(data, quick):
        if "images" in NEEDS[method] and data in VECTORS:
            with pytest.raises(ConfigError, match="holds vectors"):
                check(composed(*given, f"method={method}"))
        elif method == "normgrad" and data not in OBJECTS:
            with pytest.raises(ConfigError, match="explains a trained model"):
                check(composed(*given, f"method={method}"))
        elif method in OF_DOMAINS and data not in SEVERAL:
            with pytest.raises(ConfigError, match="trains on several domains"):
                check(composed(*given, f"method={method}"))
        elif method == "lsdc":
            for labeler in LABELERS:  # the pretext, which is the same with each, is looked at below
                config = sound(*given, "method=lsdc", f"method/labeler={labeler}", "pretext=none")
                assert config["method"]["labeler"]["_target_"].endswith(f".{labeler}_adjacency")
        else:
            assert sound(*given, f"method={method}")["method"]["name"] == method


@pytest.mark.parametrize("data", DATA)
def test_every_method_and_labeler_is_sound_or_refused(data):
    check_pairs(data, quick=True)


@pytest.mark.slow
@pytest.mark.parametrize("data", sorted(set(DATA) - OF_EVERY_SORT))
def test_the_other_pairs_are_sound_or_refused_too(data):
    check_pairs(data, quick=False)


@pytest.mark.parametrize("data", sorted(DATA))
def test_the_defaults_fit_what_a_sample_is(data):
    config = sound(f"data={data}")
    method, stages = config["method"], [s["method"]["name"] for s in config["plan"]]
    assert (config["data"]["kind"] == "vectors") == (data in VECTORS)
    if data == "digits":  # ours; rotation is a bad pretext where 6 and 9 are classes
        assert (stages, method["freeze"]) == (["lsdc"], 0)
    elif data in VECTORS:
        assert (stages, method["freeze"], method["composition"]) == (["denoising", "lsdc"], 0, "mixup")
    else:
        assert (stages, method["freeze"], method["composition"]) == (["rotnet", "lsdc"], 3, "ricap")


def test_a_pretext_is_a_value():
    for pretext, stages in [("none", ["lsdc"]), ("denoising", ["denoising", "lsdc"])]:
        config = sound("data=cifar10", f"pretext={pretext}")
        assert [s["method"]["name"] for s in config["plan"]] == stages
    with pytest.raises(ConfigError, match="no pretext named 'rotnett'") as error:
        composed("pretext=rotnett")
    assert error.value.instead.startswith("rotnet")
    with pytest.raises(ConfigError, match="no pretext named 'lsdc'"):  # a method, but no pretext
        composed("pretext=lsdc")


def test_a_folder_that_is_named_like_a_pretext_hides_it_not(tmp_path, monkeypatch):
    (tmp_path / "rotnet").mkdir()
    monkeypatch.chdir(tmp_path)
    assert compose_run(["pretext=rotnet"])["plan"][0]["method"]["name"] == "rotnet"


def test_nothing_random_is_frozen_and_nothing_pretrained_lost():
    for given, freeze in [
        (["data=cifar10"], 3),
        (["data=cifar10", "pretext=none"], 0),
        (["data=cifar10", "ckpt=a.pt"], 3),
        (["data=cifar10", "pretext=./a.pt"], 3),
        (["data=cifar10", "method.freeze=layer2"], "layer2"),
        (["data=cifar10", "method.freeze=0"], 0),
        (["data=tfidf"], 0),
        (["data=cifar10", "method=ranking_statistics"], 3),
        # a count of classes gives no weights
        (
            [
                "data=cifar10",
                "method=ranking_statistics",
                "pretext=none",
                "method.before=[class_count]",
                "num_new=auto",
            ],
            0,
        ),
    ]:
        assert composed(*given)["method"]["freeze"] == freeze, given


def test_a_kind_that_there_is_not_is_told():
    with pytest.raises(ConfigError) as error:
        composed("data.kind=sounds")
    assert (error.value.where, error.value.instead) == ("data.kind", "images or vectors")


# -- the paper's values --------------------------------------------------------------------------

SGD = {"name": "sgd", "lr": 0.1, "momentum": 0.9, "nesterov": False, "weight_decay": 5e-4, "gamma": 0.1}
# LSD-C, table 5, section 4 and appendix A
PAPER = {
    "cifar10": {
        "method": {"epochs": 220, "consistency": 5, "rampup": 100, "composition": "ricap", "freeze": 3},
        "optimizer": {**SGD, "schedule": "multistep", "milestones": [140, 180]},
        "labelers": {
            "cosine": {"threshold": 0.9},
            "sne": {"threshold": 0.01, "temperature": 1},
            "knn": {"k": 20, "normalize": False},
        },
    },
    "cifar100_20": {
        "method": {"epochs": 200, "consistency": 25, "rampup": 150, "composition": "ricap", "freeze": 3},
        "optimizer": {**SGD, "schedule": "multistep", "milestones": [170]},
        "labelers": {
            "cosine": {"threshold": 0.95},
            "sne": {"threshold": 0.01, "temperature": 0.5},
            "knn": {"k": 10},
        },
    },
    "stl10": {
        "method": {"epochs": 200, "consistency": 5, "rampup": 50, "composition": "ricap", "freeze": 3},
        "optimizer": {**SGD, "schedule": "multistep", "milestones": [140, 180]},
        "labelers": {"sne": {"threshold": 0.01, "temperature": 0.5}},
    },
    "mnist": {
        "method": {"epochs": 15, "consistency": 5, "rampup": 50},
        "optimizer": SGD,
        "labelers": {"knn": {"k": 10}},
    },
    "reuters10k": {
        "method": {"epochs": 75, "consistency": 25, "rampup": 100, "freeze": 0},
        "optimizer": {"name": "adam", "lr": 1e-3, "weight_decay": 2e-3},
        "labelers": {"knn": {"k": 5}},
    },
}


def values(of, keys):
    return {key: of[key] for key in keys}


@pytest.mark.parametrize("data", PAPER)
def test_a_pair_has_the_values_of_the_paper(data):
    paper = PAPER[data]
    for labeler, expected in paper["labelers"].items():
        given = (f"data={data}", "method=lsdc", f"method/labeler={labeler}", "pretext=none")
        method = sound(*given)["method"]
        assert values(method["labeler"], expected) == expected
    method = sound(f"data={data}")["method"]
    assert values(method, paper["method"]) == paper["method"]
    assert values(method["optimizer"], paper["optimizer"]) == paper["optimizer"]
    assert (method["batch_size"], method["space"], method["beta"]) == (256, "features", 0.3)
    assert not without_recipe(composed(f"data={data}"))


def test_rotnet_has_the_values_of_the_paper_alone_and_as_a_pretext():
    alone = sound("method=rotnet", "data=cifar10")["method"]
    first = sound("data=cifar10")["plan"][0]["method"]
    assert alone == first
    assert values(alone, ("epochs", "batch_size")) == {"epochs": 200, "batch_size": 128}
    wanted = {**SGD, "nesterov": True, "gamma": 0.2, "milestones": [60, 120, 160]}
    assert values(alone["optimizer"], wanted) == wanted


def test_the_views_of_a_pair_are_those_of_the_paper():
    cifar, stl = (composed(f"data={d}")["data"]["augmentation"] for d in ("cifar10", "stl10"))
    assert (cifar["padding"], cifar["pad_mode"], cifar["flip"]) == (4, "reflect", True)
    assert (cifar["mean"], cifar["std"]) == ([0.4914, 0.4822, 0.4465], [0.2023, 0.1994, 0.2010])
    assert (stl["padding"], stl["pad_mode"], stl["flip"]) == (12, "reflect", True)
    assert (stl["mean"], stl["std"]) == ([0.4467, 0.4398, 0.4066], [0.2603, 0.2566, 0.2713])
    reuters = composed("data=reuters10k")
    assert reuters["data"]["augmentation"]["dropout"] == reuters["plan"][0]["method"]["dropout"] == 0.2


def test_views_of_a_recipe_reach_its_pair_alone():
    ours = composed("data=tfidf")
    pretext, cluster = (stage["method"] for stage in ours["plan"])
    assert (pretext["epochs"], pretext["dropout"]) == (20, 0.8)
    assert (cluster["labeler"]["k"], cluster["labeler"]["normalize"]) == (60, True)
    assert ours["data"]["augmentation"]["dropout"] == 0.8
    assert composed("data=tfidf", "method=supervised")["data"]["augmentation"]["dropout"] == 0.2
    assert composed("data=two_moons")["plan"][0]["method"]["dropout"] == 0


def test_stl10_takes_its_only_labeler_by_itself_and_never_against_the_user(tmp_path):
    def labeler(*given):
        return composed("data=stl10", *given)["method"]["labeler"]["_target_"].rpartition(".")[2]

    assert labeler() == "sne_adjacency"
    assert labeler("epochs=3", "method.hidden=64") == "sne_adjacency"
    assert labeler("method/labeler=knn") == "knn_adjacency"
    assert composed("data=stl10", "epochs=3", "method.hidden=64")["method"]["hidden"] == 64
    with pytest.raises(ConfigError) as error:  # a setting of the labeler that the recipe replaces
        composed("data=stl10", "method.labeler.k=5")
    assert error.value.where == "method.labeler.k"
    assert "method/labeler=knn" in error.value.instead


def test_a_value_of_one_labeler_does_not_leak_into_another():
    defaults = {
        "cosine": {"threshold": 0.9},
        "sne": {"threshold": 0.01, "temperature": 1.0},
        "knn": {"k": 20, "normalize": False},
        "l2": {"threshold": 1.0, "normalize": False},
        "rank": {"k": 5},
    }
    for data, labeler in itertools.product(PAPER, LABELERS):
        given = (f"data={data}", "method=lsdc", f"method/labeler={labeler}", "pretext=none")
        found = composed(*given)["method"]["labeler"]
        wanted = {**defaults[labeler], **PAPER[data]["labelers"].get(labeler, {})}
        assert {k: v for k, v in found.items() if not k.startswith("_")} == wanted, (data, labeler)


def test_a_value_of_one_pair_does_not_leak_into_another():
    general = composed("data=usps")
    assert without_recipe(general)
    for method in ("rotnet", "kmeans"):  # whose only values are those of the method
        assert not without_recipe(composed("data=usps", f"method={method}"))
    assert general["method"]["epochs"] == 200
    # the pretext of a pair is composed for itself: LSD-C's recipe says nothing about it
    assert (
        composed("data=reuters10k")["plan"][0]["method"]
        == composed("data=reuters10k", "method=denoising")["method"]
    )


# -- experiments ---------------------------------------------------------------------------------

# what an experiment's name promises beside the values of its pair
KNOWN = "labelled_classes"
SPLITS = {"cifar10": 5, "cifar100": 80, "svhn": 5}  # the first classes are known
PROMISES = [
    (r"_(knn|sne|cosine|l2)$", lambda c, m: c["method"]["labeler"]["_target_"].endswith(f"{m[1]}_adjacency")),
    (r"table4_.*_prediction_", lambda c, m: c["method"]["space"] == "prediction"),
    (r"table4_.*_(ricap|mixup|none)$", lambda c, m: c["method"]["composition"] == m[1]),
    (r"_mixup$", lambda c, m: c["method"]["optimizer"]["weight_decay"] == 1e-4),
    (r"_no_mse$", lambda c, m: c["method"]["consistency"] == 0),
    (r"_nonlinear$", lambda c, m: c["method"]["hidden"]),
    (r"_kmeans", lambda c, m: c["method"]["name"] == "kmeans"),
    (r"lsdc.*_kmeans$", lambda c, m: c["pretext"] == "none"),
    (r"_kmeans_rotnet$", lambda c, m: c["plan"][0]["method"]["name"] == "rotnet"),
    (r"stl10$", lambda c, m: c["method"]["labeler"]["_target_"].endswith("sne_adjacency")),
    (r"mnist_cpu$", lambda c, m: c["data"]["name"] == "mnist" and c["backbone"]["width"] == 16),
    (r"mnist_cpu$", lambda c, m: [s["method"]["epochs"] for s in c["plan"]] == [2, 10]),
    (r"_no_consistency$", lambda c, m: c["method"]["consistency"] == 0),
    (r"_no_labelled$", lambda c, m: not c["method"]["labelled_loss"]),
    (r"_no_pairs$", lambda c, m: not c["method"]["pair_loss"]),
    (r"_(no_pretext|scratch)$", lambda c, m: c["pretext"] == "none"),
    (r"_pretext$", lambda c, m: "no_" in m.string or c["plan"][0]["method"]["name"] == "rotnet"),
    (r"_(full|incremental)$", lambda c, m: c["method"]["incremental"] == (m[1] == "incremental")),
    (r"table2_.*_(kmeans|kcl|mcl|dtc)_(s|p)", lambda c, m: c["method"]["name"] == m[1]),
    (r"ing_statistics/.*_(cifar100|cifar10|svhn)", lambda c, m: c["data"][KNOWN] == SPLITS[m[1]]),
    (r"ing_statistics/table6", lambda c, m: c["plan"][-2]["name"] == "class_count"),
    (r"_omniglot$", lambda c, m: c["plan"][0]["method"]["name"] == "prototypical"),
    (r"(?<!adapters)/digits", lambda c, m: c["data"]["name"] == "digits"),
    (r"ing_statistics/digits", lambda c, m: c["data"][KNOWN] == [0, 2, 4, 6, 8]),
    (
        r"/digits_(kcl|mcl|dtc|kmeans|mean_teacher|pi_model|supervised)",
        lambda c, m: c["method"]["name"] == m[1],
    ),
    (r"adapters/digits", lambda c, m: c["data"]["name"] == "digit_domains"),
    (r"/digits_(finetune|feature_extractor|bn_adapters|lwf)$", lambda c, m: c["method"]["name"] == m[1]),
    (r"(parallel|series)_adapters/digits$", lambda c, m: c["method"]["name"] == f"{m[1]}_adapters"),
    (r"/digits_svd$", lambda c, m: c["method"]["name"] == "svd_adapters"),
    (
        r"/digits_round_robin$",
        lambda c, m: [s["name"] for s in c["plan"]] == ["source", "round_robin", "parallel_adapters"],
    ),
    (r"/digits_alternating", lambda c, m: c["method"]["name"] == "alternating_ssl"),
    (r"/(rcv1|reuters21578)$", lambda c, m: Path(c["data"]["root"]).name.startswith(m[1])),
    (r"omniglot_cpu$", lambda c, m: [s["method"]["epochs"] for s in c["plan"]] == [8, 4, 100]),
    (r"omniglot_cpu$", lambda c, m: c["data"]["name"] == "omniglot" and c["backbone"]["width"] == 32),
    (r"/table1_(finetune|lwf|bn_adapters|feature_extractor)$", lambda c, m: c["method"]["name"] == m[1]),
    (r"/table1_(series|parallel|svd)(?:_|$)", lambda c, m: c["method"]["name"] == f"{m[1]}_adapters"),
    (r"/table1_(early|mid|late|half)$", lambda c, m: c["method"]["where"] == m[1]),
    (r"/table1_scratch", lambda c, m: [s["name"] for s in c["plan"]] == [c["method"]["stage"]]),
    (r"/table1_scratch_plus$", lambda c, m: c["method"]["shared"]),
    (r"/table1_last_two$", lambda c, m: c["method"]["last"] == 2),
    (r"_no_residual$", lambda c, m: not c["method"]["residual"]),
    (r"_large$", lambda c, m: c["backbone"]["width"] == 160),
    (r"adapters/", lambda c, m: c["method"]["task"] == "domains"),
    (r"adapters/(?!digits)", lambda c, m: c["data"]["name"] == "decathlon"),
    (r"_imagenet$", lambda c, m: c["plan"][0]["method"]["name"] == "supervised"),
    (r"alternating_ssl/.*_n(\d+)$", lambda c, m: c["data"]["labels_per_class"] == int(m[1])),
    (
        r"alternating_ssl/table2",
        lambda c, m: c["data"]["labels_per_class"] == 10 and not c["plan"][0]["method"],
    ),
    (r"alternating_ssl/table2_(?:places10|mit67)", lambda c, m: "orchvision" in c["backbone"]["_target_"]),
    (r"_(mean_teacher|alternating_ssl)(?:_|$)", lambda c, m: c["method"]["name"] == m[1]),
    (r"alternating_ssl/figure1", lambda c, m: c["method"]["name"] == "pi_model" and len(c["plan"]) == 1),
    (r"_mean_teacher_rotnet", lambda c, m: c["plan"][0]["method"]["name"] == "rotnet"),
    (r"_mean_teacher_scratch", lambda c, m: len(c["plan"]) == 1),
    (
        r"_(conv10|revnet18|resnet18)_n",
        lambda c, m: m[1].rstrip("0123456789") in c["backbone"]["_target_"].lower(),
    ),
    (
        r"alternating_ssl/table3",
        lambda c, m: c["method"]["freeze"] == 2 and c["plan"][0]["name"] == "pretext",
    ),
    (
        r"normgrad/shapes$",
        lambda c, m: (
            [s["method"]["name"] for s in c["plan"]] == ["multilabel", "normgrad"]
            and c["plan"][0]["method"]["epochs"] == 40
            and (c["data"]["name"], c["ckpt"]) == ("shapes", None)
        ),
    ),
    (
        r"normgrad/voc_efficientnet$",
        lambda c, m: (
            (len(c["plan"]), c["data"]["name"], c["method"]["class_map"]) == (1, "voc", "voc_imagenet")
            and c["ckpt"].startswith("tests.extras.efficientnet_lite0:")
        ),
    ),
    (
        r"normgrad/voc_(resnet50|vgg16)$",
        lambda c, m: (
            (c["backbone"]["name"], c["data"]["name"], c["method"]["name"]) == (m[1], "voc", "multilabel")
        ),
    ),
    (rf"(?:table|figure)\d_({'|'.join(sorted(DATA, reverse=True))})", lambda c, m: c["data"]["name"] == m[1]),
]


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_does_what_it_says(name):
    starts = {"alternating_ssl/table2": "pretext", "voc_resnet50": "ckpt", "voc_vgg16": "ckpt"}  # a file, any
    file = [f"{key}={CONF / 'config.yaml'}" for part, key in starts.items() if part in name]
    config = sound(f"experiment={name}", *file)
    text = (CONF / "experiment" / f"{name}.yaml").read_text(encoding="utf-8")
    header = text.partition("\ndefaults:")[0]
    assert header.startswith("# @package _global_\n"), "Hydra reads the package in the first lines alone"

    figure = re.search(r"# Paper: ([\d.]+)(?: ± ([\d.]+))? % (ACC|accuracy|error)", header)
    if "/table" in name:
        assert figure, "no figure of the paper in the header"
        scores = {"discovery": "new/acc", "classification": "test/accuracy", "domains": "mean/accuracy"}
        score = scores.get(config["method"]["task"], "acc")
        share = float(figure[1]) / 100
        expected = {score: 1 - share if figure[3] == "error" else share} | (
            {"std": float(figure[2]) / 100} if figure[2] else {}
        )
        expected |= {
            f"test/{group}/acc": float(value) / 100
            for group, value in re.findall(
                r"(old|new|all) ([\d.]+)", header.partition("test split: ")[2].split("\n")[0]
            )
        }
        assert config["expected"] == pytest.approx(expected)
    else:
        assert "Ours: " in header
        assert config["expected"] is None

    commands = re.findall(r"#   python train\.py (.*?)(?:  +\(.*)?$", header, re.MULTILINE)
    assert len(commands) >= 2
    assert all(f"experiment={name}" in c.split() for c in commands)
    assert yaml.safe_load(text)["hydra"]["sweeper"]["params"]["seed"] == "0,1,2,3,4,5,6,7,8,9"

    kept = [(pattern, promise, re.search(pattern, name)) for pattern, promise in PROMISES]
    assert any(match for _, _, match in kept)
    for pattern, promise, match in kept:
        assert match is None or promise(config, match), pattern


def test_what_is_overridden_beside_an_experiment_wins():
    config = sound("experiment=lsdc/table4_cifar10_mixup", "seed=3", "method.composition=none", "epochs=5")
    assert (config["seed"], config["method"]["composition"], config["method"]["epochs"]) == (3, "none", 5)


# -- overrides -----------------------------------------------------------------------------------


def test_short_forms_set_the_last_stage_and_stages_the_others():
    config = sound(
        "data=cifar10",
        "epochs=7",
        "batch_size=64",
        "stages.pretext.epochs=9",
        "stages.pretext.batch_size=32",
        "++stages.pretext.optimizer.lr=0.5",
    )
    pretext, cluster = (s["method"] for s in config["plan"])
    assert (cluster["epochs"], cluster["batch_size"], cluster["optimizer"]["lr"]) == (7, 64, 0.1)
    assert (pretext["epochs"], pretext["batch_size"], pretext["optimizer"]["lr"]) == (9, 32, 0.5)
    assert pretext["optimizer"]["nesterov"] is True, "what is not named stays"
    assert config["method"] is cluster


def test_null_is_a_value_where_it_does_not_mean_the_recipe():
    given = ("data=cifar10", "++stages.pretext.optimizer.milestones=null", "stages.pretext.epochs=null")
    pretext = composed(*given)["plan"][0]["method"]
    assert pretext["optimizer"]["milestones"] is None
    assert pretext["epochs"] == 200


def test_fast_is_one_epoch_in_every_stage():
    config = sound("data=cifar10", "fast=true")
    assert [s["method"]["epochs"] for s in config["plan"]] == [1, 1]
    assert [s["method"]["epochs"] for s in sound("method=kmeans", "fast=true")["plan"]] == [0]


def leaves(values, prefix=""):
    for key, value in values.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def test_every_setting_of_the_configuration_can_be_overridden():
    """Each gets another value at once; none may come out as it was."""
    before = composed("data=cifar10")
    words = {"protocol": "split", "pretext": "denoising", "ckpt": None, "method.freeze": "layer2"}
    wanted = {}
    for key, value in leaves({k: v for k, v in before.items() if k not in ("plan", "recipe", "stages")}):
        name = key.rpartition(".")[2]
        if name in ("_target_", "_partial_", "kind", "before", "name", "stage", "task", "needs", "role"):
            continue
        # short forms, and others' tests
        if key in ("epochs", "batch_size", "ckpt", "refine", "expected", "fast"):
            continue
        if isinstance(value, bool):
            wanted[key] = not value
        elif isinstance(value, int | float):
            wanted[key] = value + 1
        elif isinstance(value, list):
            wanted[key] = [v + 1 for v in value]
        else:
            wanted[key] = words.get(key, "something")
    assert len(wanted) > 50
    after = dict(leaves(compose_run(["data=cifar10", *(f"{k}={v}" for k, v in wanted.items())])))
    assert {k: after[k] for k in wanted} == wanted


def test_a_value_of_the_recipe_can_be_overridden():
    assert composed("recipe.epochs=7", "recipe.knn.k=5")["method"]["epochs"] == 7
    assert composed("recipe.epochs=7", "recipe.knn.k=5")["method"]["labeler"]["k"] == 5
    assert composed("data=usps", "recipe=lsdc-mnist")["method"]["epochs"] == 15
    assert without_recipe(composed("data=cifar10", "~recipe"))


IGNORED = {
    ("epochs=5", "method.epochs=6"): "epochs, method.epochs",
    ("batch_size=5", "method.batch_size=5"): "batch_size, method.batch_size",
    ("ckpt=a.pt", "pretext=rotnet"): "pretext, ckpt",
    ("recipe=lsdc-cifar"): "recipe",
    ("+recipe.epoch=3"): "recipe.epoch",
    ("+recipe.knn.threshold=3"): "recipe.knn.threshold",
    ("method=kmeans", "epochs=3"): "epochs",
}


@pytest.mark.parametrize("given", IGNORED, ids=str)
def test_an_override_that_would_have_no_effect_is_refused(given):
    with pytest.raises(ConfigError) as error:
        composed(*((given,) if isinstance(given, str) else given))
    assert error.value.where == IGNORED[given]
    assert error.value.instead


def test_a_recipe_value_that_an_override_replaces_is_not_unknown():
    assert composed("method.optimizer.lr=0.2")["method"]["optimizer"]["lr"] == 0.2  # digits' recipe has one


def test_every_recipe_belongs_to_a_pair_and_is_read():
    for name in options_of("recipe"):
        method, _, data = name.partition("-")
        assert method in METHODS, name
        assert data in DATA, name
        # what nothing reads is refused; the same overrides as above are composed once
        composed(f"data={data}", *([] if method == "lsdc" else [f"method={method}"]))


# -- names and places ----------------------------------------------------------------------------


def test_a_run_is_named_by_what_shapes_it_alone():
    config = composed()

    def name(*given):
        return run_name(config, list(given))

    a, b = "method.labeler.k=7", "epochs=3"
    assert name(a, b) == name(b, a)
    assert name(a, "resume=true", "logger=wandb", "logger.project=x") == name(a)
    assert name(a, "output_dir=x", "cache_dir=y", "embedding_size=0", "hydra.sweep.dir=z") == name(a)
    assert name(a, "compare_kmeans=false") == name(a)
    assert name("+" + a) == name("++" + a) == name(a)
    assert name(a, "seed=3") == name(a)  # config is of seed 0
    assert name("epochs=4", b) == name(b), "of a setting given twice the last counts"
    assert len({name(), name(a), name(b), name(a, b), name("epochs=4")}) == 5
    assert re.fullmatch(r"lsdc-digits/[0-9a-f]{8}-seed0", name(a))


def test_the_configuration_is_found_in_a_checkout_and_in_a_wheel(tmp_path, monkeypatch):
    assert paths.conf_dir() == CONF
    installed = tmp_path / "site-packages" / "scarcely"
    (installed / "conf").mkdir(parents=True)
    monkeypatch.setattr(paths, "__file__", str(installed / "config" / "paths.py"))
    assert paths.conf_dir() == (installed / "conf").resolve()


def test_a_wheel_holds_the_configuration():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert wheel["force-include"] == {"conf": "scarcely/conf"}
    assert project["project"]["scripts"]["scarcely"] == "scarcely.cli:main"


def test_every_setting_has_its_reason():
    """A value whose meaning or source is not said beside it is one that nobody dares to change."""
    structure = re.compile(r" *(_target_|_partial_|name|stage|task|needs|role): [\w.\[\]]+$| *\w+:$")
    for path in (p for g in ("method", "backbone", "trainer", "logger") for p in (CONF / g).rglob("*.yaml")):
        lines = path.read_text(encoding="utf-8").splitlines()
        assert lines[0].startswith("# "), path
        for line in lines:
            if re.match(r" *\w+:", line) and not structure.match(line):
                assert "  # " in line, f"{path.name}: {line}"


def test_an_experiment_may_say_what_few_labels_or_a_refinement_would_set(tmp_path, monkeypatch):
    conf = tmp_path / "conf"
    shutil.copytree(compose.conf_dir(), conf)
    (conf / "experiment/mine.yaml").write_text(
        "# @package _global_\ndefaults:\n  - override /method: alternating_ssl\n  - _self_\n"
        "method: {split: 0.5}\n"
    )
    monkeypatch.setattr(compose, "conf_dir", lambda: conf)
    few = ["data.labels_per_class=5", "refine=x"]
    assert compose.compose_run(["experiment=mine", *few])["method"]["split"] == 0.5
    assert compose.compose_run(["experiment=mine", "method.split=0.9", *few])["method"]["split"] == 0.9
    refined = compose.compose_run(["method=alternating_ssl", *few])["method"]
    assert (refined["split"], refined["labels"]) == (1.0, "soft")
