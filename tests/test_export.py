"""A finished run becomes programs that do what its network does, or nothing at all."""

from __future__ import annotations

import importlib.util
import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from scarcely import checkpoints, programs
from scarcely.adapters import attach
from scarcely.backbones.resnet26 import ResNet26
from scarcely.config.compose import compose_run
from scarcely.data.decode import decode_image
from scarcely.export import main
from scarcely.predict import load_run, old_and_new
from scarcely.predict import main as predict
from scarcely.run import execute
from tests.domains.runs import network as domain_network
from tests.domains.runs import run as domain_run
from tests.domains.runs import write_release

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
FORMATS = "torch,onnx" if all(importlib.util.find_spec(name) for name in PACKAGES) else "torch"
needs_onnx = pytest.mark.skipif(FORMATS == "torch", reason="onnx, onnxscript or onnxruntime is not installed")
SMALL = ("data=digits", "data.size=8", "backbone.width=4", "fast=true")


def tiny_run(folder, *overrides):
    """Run a method for two batches, without pictures."""
    config = compose_run(
        [
            *("trainer=cpu", "compare_kmeans=false", "embedding_size=0", *overrides),
            *(f"run_dir={folder}", f"cache_dir={folder.parent / 'cache'}"),
        ]
    )
    config["command"] = ""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("scarcely.reports.html.write_report", lambda evidence: None)  # tested elsewhere
        execute(config, "unused")
    return folder


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def lsdc(root):
    return tiny_run(root / "lsdc", "method=lsdc", *SMALL)


@pytest.fixture(scope="module")
def discovery(root):
    known = "data.labelled_classes=[0,2,4,6,8]"
    return tiny_run(root / "rank", "method=ranking_statistics", *SMALL, known)


@pytest.fixture(
    scope="module",
    params=[
        "series_adapters",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("parallel_adapters", "svd_adapters")),
    ],
)
def domains(request, root):
    release = root / "release"
    if not release.exists():
        write_release(release)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SCARCELY_CACHE", str(root / "decoded"))
        domain_run(root / request.param, release, root / "cache", request.param)
    return root / request.param


@pytest.fixture(scope="module")
def written(lsdc, root):
    """The programs of one run in all formats there are, and what is told of them."""
    return root / "written", exported(lsdc, root / "written", formats=FORMATS)


def stage_of(root, name):
    """Return the weights of an earlier stage, from the cache of the runs."""
    paths = (root / "cache" / "stages").glob("*/weights.pt")
    return next(p for p in paths if checkpoints.load(p)["job"]["name"] == name)


def exported(run, out, *given, formats="torch"):
    """Export a run and return what was written about it."""
    assert main([f"ckpt={run}", f"out={out}", f"formats={formats}", *given]) == 0
    return json.loads((out / "model.json").read_text())


def run_torch(folder, inputs):
    return [found.numpy() for found in torch.export.load(folder / "model.pt2").module()(inputs)]


def run_onnx(folder, inputs):
    import onnxruntime

    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    return session.run(["logits", "probabilities"], {"inputs": inputs.numpy()})


def images_of(count, channels, side, seed=1):
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.integers(0, 256, (count, channels, side, side), dtype=np.uint8))


@pytest.mark.parametrize("form", ["torch", pytest.param("onnx", marks=needs_onnx)])
def test_a_program_names_images_as_prediction_does(lsdc, written, tmp_path, monkeypatch, form):
    monkeypatch.setenv("SCARCELY_CACHE", str(tmp_path / "decoded"))
    (tmp_path / "images").mkdir()
    for number, pixels in enumerate(np.random.default_rng(0).integers(0, 255, (5, 30, 40), dtype=np.uint8)):
        Image.fromarray(pixels).save(tmp_path / "images" / f"{number}.png")
    assert predict([f"ckpt={lsdc}", f"images={tmp_path / 'images'}", f"out={tmp_path / 'labels.csv'}"]) == 0
    rows = [line.split(",") for line in (tmp_path / "labels.csv").read_text().splitlines()[1:]]

    folder, told = written
    channels, side = told["input"]["shape"][1:3]
    decoded = np.stack([decode_image(tmp_path / "images" / name, side, channels) for name, _, _ in rows])
    inputs = torch.from_numpy(decoded).permute(0, 3, 1, 2).contiguous()
    _, probabilities = (run_torch if form == "torch" else run_onnx)(folder, inputs)
    assert [told["names"][k] for k in probabilities.argmax(axis=1)] == [cluster for _, cluster, _ in rows]
    np.testing.assert_allclose(probabilities.max(axis=1), [float(p) for *_, p in rows], atol=6e-5)


def test_what_is_written_says_what_goes_in_and_comes_out(lsdc, written):
    folder, told = written
    formats = FORMATS.split(",")
    assert {path.name for path in folder.iterdir()} == {"model.json", *told["files"].values()}
    assert (told["input"]["type"], told["input"]["shape"]) == ("uint8", ["batch", 1, 8, 8])
    assert told["input"]["range"] == [0, 255]
    assert (told["kind"], told["names"]) == ("clusters", [str(k) for k in range(10)])
    assert (told["method"], told["data"], told["run"]) == ("lsdc", "digits", str(lsdc))
    assert list(told["check"]["differences"]) == formats
    for apart in told["check"]["differences"].values():
        assert all(0 <= value <= 1e-5 for value in apart.values())


@pytest.mark.parametrize("form", ["torch", pytest.param("onnx", marks=needs_onnx)])
def test_a_program_takes_batches_of_any_size_and_nothing_but_its_own_kind_of_images(written, form):
    folder, _ = written
    run = run_torch if form == "torch" else run_onnx
    images = images_of(70, 1, 8)
    logits, probabilities = run(folder, images)
    for size in (1, 2, 33):
        np.testing.assert_allclose(run(folder, images[:size])[0], logits[:size], atol=1e-5)
    np.testing.assert_allclose(probabilities, torch.from_numpy(logits).softmax(dim=1), atol=1e-6)
    for wrong in (images.float() / 255, images[:, :, :7], images.expand(-1, 3, -1, -1)):
        with pytest.raises(Exception, match=r"(?i)dtype|type|shape|dimension|guard"):
            run(folder, wrong)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["kmeans", pytest.param("dtc", marks=pytest.mark.slow)])
def test_distances_are_exported_for_batches_of_any_size(root, tmp_path, method):
    known = ["data.labelled_classes=[0,2,4,6,8]"] if method == "dtc" else []
    run = tiny_run(root / method, f"method={method}", *SMALL, *known)
    told = exported(run, tmp_path / "out", formats=FORMATS if method == "dtc" else "torch")
    images = images_of(40, 1, 8)  # above 25 rows torch computes distances in another way
    logits = run_torch(tmp_path / "out", images)[0]
    assert logits.shape == (40, 10)
    largest = abs(logits).max()
    np.testing.assert_allclose(run_torch(tmp_path / "out", images[:4])[0], logits[:4], atol=1e-5 * largest)
    assert told["names"][-1] == ("new 5" if method == "dtc" else "9")


@pytest.mark.slow
def test_vectors_are_taken_as_they_are(root, tmp_path):
    run = tiny_run(root / "moons", "method=lsdc", "data=two_moons", "fast=true", "backbone.widths=[8,4]")
    told = exported(run, tmp_path / "out")
    assert told["input"] == {"name": "inputs", "type": "float32", "shape": ["batch", 2], "range": None}
    x = torch.randn(5, 2, generator=torch.Generator().manual_seed(0))
    method, _ = load_run(str(run))
    with torch.no_grad():
        np.testing.assert_allclose(run_torch(tmp_path / "out", x)[0], method(x), atol=1e-6)


# -- heads ----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_each_head_of_a_discovery_can_be_had(discovery, tmp_path):
    images = images_of(6, 1, 8)
    method, content = load_run(str(discovery))
    settings = content["job"]["data"]["augmentation"]
    joint, names = old_and_new(method, content, discovery)
    with torch.no_grad():
        x = programs.ImageAugmentation(settings["mean"], settings["std"]).clean(images.permute(0, 2, 3, 1))
        features = method.features(x)
        expected = {"old": joint(features)[:, :5], "new": method.logits(features)}
    assert names == ["0", "2", "4", "6", "8", *(f"new {k}" for k in range(1, 6))]
    called = {"old": names[:5], "new": names[5:]}
    for head, logits in expected.items():
        assert exported(discovery, tmp_path / head, f"head={head}")["names"] == called[head]
        np.testing.assert_allclose(run_torch(tmp_path / head, images)[0], logits, atol=1e-5)


@pytest.mark.slow
def test_a_bare_checkpoint_has_no_old_head(discovery, tmp_path, capsys):
    (tmp_path / "weights.pt").write_bytes((discovery / "weights.pt").read_bytes())
    for head in ("old", "all"):
        assert main([f"ckpt={tmp_path}", f"out={tmp_path / 'out'}", f"head={head}", "formats=torch"]) == 2
        assert "nothing in the checkpoint tells known classes apart" in capsys.readouterr().err
        assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_stage_that_saw_known_classes_alone_has_their_names(discovery, root, tmp_path):
    told = exported(stage_of(root, "supervised"), tmp_path / "out")
    assert (told["kind"], told["names"]) == ("classes", ["0", "2", "4", "6", "8"])
    assert run_torch(tmp_path / "out", images_of(2, 1, 8))[0].shape == (2, 5)


# -- domains --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_domain_is_a_plain_network_that_says_what_the_adapted_one_does(domains, tmp_path):
    formats = "torch" if domains.name == "series_adapters" else FORMATS  # ONNX takes seconds
    assert main([f"ckpt={domains}", f"out={tmp_path / 'out'}", "domain=signs", f"formats={formats}"]) == 0
    folder = tmp_path / "out" / "signs"
    told = json.loads((folder / "model.json").read_text())
    assert (told["domain"], told["kind"], len(told["names"])) == ("signs", "classes", 4)
    images = images_of(5, 3, told["input"]["shape"][2])
    method = domain_network(domains, "signs").eval()
    settings = load_run(str(domains / "domains" / "signs"))[1]["job"]["data"]["augmentation"]
    assert (images.shape[2], settings["crop"]) == (9, 8)  # the centre is cut out by the program
    augmentation = programs.ImageAugmentation(settings["mean"], settings["std"], crop=8)
    with torch.no_grad():
        expected = method(augmentation.clean(images.permute(0, 2, 3, 1)))
    for name in formats.split(","):
        run = {"torch": run_torch, "onnx": run_onnx}[name]
        np.testing.assert_allclose(run(folder, images)[0], expected, atol=1e-4)
    program = torch.export.load(folder / "model.pt2")
    convolutions = [node for node in program.graph.nodes if node.target is torch.ops.aten.conv2d.default]
    assert len(convolutions) == count_plain(method)
    assert not [name for name in program.state_dict if "members" in name or "source" in name]


@pytest.mark.parametrize("kind", ["parallel", "series", "series alone", "low rank", "bn", "head"])
def test_merged_layers_are_plain_and_compute_the_same(kind):
    torch.manual_seed(0)
    adapted = attach(
        ResNet26(width=4, blocks=1),
        kind="parallel" if kind == "low rank" else kind.split()[0],
        domains={"a": 3, "b": 5},
        residual=kind != "series alone",
    )
    for module in adapted.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2)
    if kind == "low rank":
        adapted.compress(rank=2)
    adapted.eval().set_domain("b")
    x = torch.randn(4, 3, 16, 16)
    with torch.no_grad():
        expected = adapted(x)
        programs.merge(adapted)
        torch.testing.assert_close(adapted(x), expected, atol=1e-4, rtol=1e-4)
    kinds = {type(module) for module in adapted.modules()} - {type(adapted)}
    assert not [kind for kind in kinds if "adapters" in kind.__module__]


def count_plain(method):
    """Return the convolutions of the network that adapters were attached to."""
    return sum(isinstance(module, nn.Conv2d) for module in method.backbone.network.modules())


@pytest.mark.slow
def test_a_run_over_domains_asks_for_one_of_them(domains, lsdc, tmp_path, capsys):
    for ckpt, domain, told in (
        (domains, "", "holds a network for each domain"),
        (domains, "gtsrb,moon", "no domain 'moon'"),
        (lsdc, "gtsrb", "no run over several domains"),
    ):
        given = [f"ckpt={ckpt}", f"out={tmp_path / 'out'}", "formats=torch"]
        assert main([*given, *([f"domain={domain}"] if domain else [])]) == 2
        assert told in capsys.readouterr().err
        assert not (tmp_path / "out").exists()


# -- what goes wrong ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"ckpt": "nowhere"}, "there is no checkpoint"),
        ({"formats": "tf"}, "there is no format 'tf'"),
        ({"head": "both"}, "there is no head 'both'"),
        ({"head": "old"}, "a lsdc run has one head"),
        ({"out": "no/where"}, "cannot write"),
        ({"out": "full"}, "there is something in"),
        ({"format": "torch"}, "formats"),
    ],
)
def test_a_mistake_is_told_in_one_message_and_nothing_is_written(
    lsdc, tmp_path, monkeypatch, capsys, changes, told
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("")
    given = {"ckpt": str(lsdc), "out": "out", "formats": "torch"} | changes
    assert main([f"{key}={value}" for key, value in given.items()]) == 2
    message = capsys.readouterr().err
    assert told in message
    assert "Traceback" not in message
    assert [path.name for path in tmp_path.iterdir()] == ["full"]


def test_a_pretext_has_nothing_to_export(root, tmp_path, capsys):
    run = tiny_run(root / "rotnet", "method=rotnet", *SMALL)
    assert main([f"ckpt={run}", f"out={tmp_path / 'out'}", "formats=torch"]) == 2
    assert "has no clusters or classes" in capsys.readouterr().err


def test_without_the_packages_of_onnx_the_command_to_install_them_is_told(
    lsdc, tmp_path, monkeypatch, capsys
):
    for package in PACKAGES:
        monkeypatch.setitem(sys.modules, package, None)
    assert main([f"ckpt={lsdc}", f"out={tmp_path / 'out'}"]) == 2
    message = capsys.readouterr().err
    assert ", ".join(PACKAGES) in message
    assert "pip install 'scarcely[onnx]'" in message
    assert "formats=torch" in message
    assert exported(lsdc, tmp_path / "out")["files"] == {"torch": "model.pt2"}


class Odd(nn.Module):
    """A head whose way depends on what it is shown."""

    def forward(self, features):
        return features[:, :3] if features.sum() > 0 else features[:, :2]


class Wrong(nn.Module):
    """A network that is traced in another mode than it predicts."""

    def forward(self, features):
        return features[:, :3] + 0.01 * torch.compiler.is_exporting()


@pytest.mark.parametrize(
    ("head", "told"), [(Odd, "torch.export cannot write"), (Wrong, "is not the network")]
)
def test_what_cannot_be_exported_or_is_not_the_same_leaves_nothing(
    lsdc, tmp_path, monkeypatch, capsys, head, told
):
    monkeypatch.setattr(programs, "outputs_of", lambda *_: (head(), ["a", "b", "c"]))
    assert main([f"ckpt={lsdc}", f"out={tmp_path / 'out'}", "formats=torch"]) == 2
    message = capsys.readouterr().err
    assert told in message
    assert "Traceback" not in message
    assert list(tmp_path.iterdir()) == []
