"""Checkpoints with too much, too little, other names, damage and code in them; folders tampered with."""

from __future__ import annotations

import io
import os
import pickle
import random
import re
import shutil
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from scarcely import checkpoints
from scarcely.backbones.small import SmallCNN
from scarcely.errors import CheckpointError, DataError
from scarcely.folder import RunFolder
from tests.hard.test_annotations import damaged_bytes
from tests.runs import TINY, Process, command_line, start_run

CASES = int(os.environ.get("SCARCELY_CASES", "400"))


def network(width: int = 4) -> SmallCNN:
    torch.manual_seed(0)
    return SmallCNN(width=width, num_features=6)


# -- code ----------------------------------------------------------------------------------------


class Call:
    """What unpickles as a call."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def attacks(trap: Path) -> dict[str, Any]:
    """Return objects that touch a file when they are unpickled, by the way that they take."""
    return {
        "a function": Call(Path.touch, trap),
        "the shell": Call(os.system, f"touch '{trap}'"),
        "eval": Call(eval, f"open({str(trap)!r}, 'w')"),
        "exec": Call(exec, f"open({str(trap)!r}, 'w')"),
        "getattr": Call(getattr, Path, "touch"),
        "torch.load within torch.load": Call(torch.load, str(trap)),
        "a nested pickle": Call(pickle.loads, pickle.dumps(Call(Path.touch, trap))),
        "a whole network": network(),
        "open": Call(open, str(trap), "w"),
    }


WRAPS = {
    "on its own": lambda attack: attack,
    "beside weights": lambda attack: {"state_dict": network().state_dict(), "x": attack},
    "as a weight": lambda attack: {"state_dict": {**network().state_dict(), "x": attack}},
    "in a list": lambda attack: {"state_dict": network().state_dict(), "x": [[{"y": (attack,)}]]},
    "as a key": lambda attack: {"state_dict": network().state_dict(), "args": {("a", 1): attack}},
}


@pytest.mark.parametrize("kind", ["zip", pytest.param("old", marks=pytest.mark.slow), "pickle"])
def test_no_code_runs_whatever_way_it_takes(tmp_path, kind):
    trap = tmp_path / "trapped"
    path = tmp_path / "evil.pt"
    for name, attack in attacks(trap).items():
        for where, wrap in WRAPS.items():
            if kind == "pickle":
                path.write_bytes(pickle.dumps(wrap(attack)))
            else:
                torch.save(wrap(attack), path, _use_new_zipfile_serialization=kind == "zip")
            with pytest.raises(CheckpointError) as caught:
                checkpoints.load(path)
            assert "evil.pt" in caught.value.what, (name, where)
            assert not trap.exists(), (name, where)
    pickle.loads(pickle.dumps(attacks(trap)["a function"]))
    assert trap.exists(), "the attack is a dud, and this test proves nothing"


def test_code_spliced_into_an_honest_checkpoint_does_not_run(tmp_path):
    """An attacker changes the pickle inside of the zip file alone: all tensors are as they were."""
    trap, path = tmp_path / "trapped", tmp_path / "evil.pt"
    checkpoints.save({"state_dict": network().state_dict()}, path)
    honest = path.read_bytes()
    with zipfile.ZipFile(io.BytesIO(honest)) as source, zipfile.ZipFile(path, "w") as target:
        for entry in source.namelist():
            content = source.read(entry)
            if entry.endswith("data.pkl"):
                code = pickle.dumps(Call(Path.touch, trap), 2).removeprefix(b"\x80\x02").removesuffix(b".")
                head = 2  # behind the opcode of the protocol
                content = content[:head] + code + b"0" + content[head:]
            target.writestr(entry, content)
    with pytest.raises(CheckpointError):
        checkpoints.load(path)
    assert not trap.exists()


# -- damage --------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["zip", "old"])
def test_files_with_random_damage_are_read_or_named(tmp_path, kind):
    path = tmp_path / "some.ckpt"
    torch.save(
        {"state_dict": network().state_dict(), "epoch": 3}, path, _use_new_zipfile_serialization=kind == "zip"
    )
    whole, draw, read = path.read_bytes(), random.Random(0), 0
    told = []
    for _ in range(CASES):
        path.write_bytes(damaged_bytes(whole, draw))
        try:
            content = checkpoints.load(path)
            tensors = checkpoints.tensors_of(content)
            checkpoints.fill(network(), tensors, source="some.ckpt", least=0.5, where="ckpt")
            read += 1
        except CheckpointError as error:
            told.append(error.what)
    assert all(told)
    assert read < CASES


# -- names ---------------------------------------------------------------------------------------


@pytest.mark.slow
def test_extra_missing_and_renamed_weights(tmp_path):
    """What fits is loaded as it is, what does not is counted: nothing is guessed, nothing half-loaded."""
    draw = random.Random(0)
    source = network().state_dict()
    numbers = {n: t.numel() for n, t in source.items() if t.is_floating_point()}
    refused = 0
    for _ in range(CASES):
        tensors = dict(source)
        for name in draw.sample(sorted(source), draw.randrange(len(source))):
            how = draw.choice(["drop", "rename", "reshape", "type", "scalar", "extra"])
            if how == "drop":
                del tensors[name]
            elif how == "rename":
                tensors[draw.choice(["x.", "", "module."]) + name + draw.choice(["_", ".weight", "2"])] = (
                    tensors.pop(name)
                )
            elif how == "reshape":
                tensors[name] = torch.zeros(3, 1, 2)
            elif how == "type" and tensors[name].is_floating_point():
                tensors[name] = tensors[name].half().float().double()
            elif how == "scalar":
                tensors[name] = torch.tensor(1.0)
            else:
                tensors[f"{name}.extra"] = torch.zeros(2)
        prefix = draw.choice(["", "module.", "model.encoder."])
        given = {prefix + n: t for n, t in tensors.items()}
        target = SmallCNN(width=4, num_features=6)
        before = {n: t.clone() for n, t in target.state_dict().items()}
        right = {n for n, t in tensors.items() if n in source and t.shape == source[n].shape}
        share = sum(numbers.get(n, 0) for n in right) / sum(numbers.values())
        try:
            found = checkpoints.fill(target, given, source="x.pt", least=0.5, where="ckpt")
        except CheckpointError:
            found = None
        if found is None:
            refused += 1
            assert share < 0.5 or not right, given
            assert all(torch.equal(before[n], t) for n, t in target.state_dict().items())
            continue
        assert found.share == pytest.approx(share)
        for name, tensor in target.state_dict().items():
            wanted = tensors[name].to(tensor.dtype) if name in right else before[name]
            assert torch.equal(tensor, wanted), name
        told = {*found.matched, *found.missing, *found.reshaped}
        assert {n for n in source if not n.endswith("num_batches_tracked")} <= told
    assert 0 < refused < CASES


@pytest.mark.slow
@pytest.mark.parametrize("value", ["nan", "inf"])
def test_weights_that_are_no_numbers_are_refused(tmp_path, value):
    """They would train to nothing: a loss that is not finite is told, but after the data are read."""
    tensors = {n: t.clone() for n, t in SmallCNN(1, 8, width=4, num_features=16).state_dict().items()}
    tensors["conv1.0.weight"][0] = float(value)
    checkpoints.save({"state_dict": tensors}, tmp_path / "bad.pt")
    process = start_run(tmp_path / "run", f"ckpt={tmp_path / 'bad.pt'}", "epochs=1", f"cache_dir={tmp_path}")
    assert process.wait() == 2, process.output
    assert "Traceback" not in process.output
    assert "not finite" in process.output


def test_a_checkpoint_of_something_else_is_not_gone_on_with(tmp_path):
    path = tmp_path / "last.ckpt"
    state = network().state_dict()
    whole = {key: {} for key in checkpoints._OF_TRAINING} | {"state_dict": state}
    checkpoints.save(whole, path)
    checkpoints.check_last(path, network())
    without = dict(list(state.items())[1:])
    for content in (
        *([1], {}, {"state_dict": state}, {**whole, "state_dict": without}),
        *(
            {**whole, "state_dict": {**state, "x": torch.ones(2)}},
            {**whole, "state_dict": dict.fromkeys(state, 1)},
        ),
        {k: v for k, v in whole.items() if k != "loops"},
    ):
        checkpoints.save(content, path)
        with pytest.raises(CheckpointError, match="could go on from"):
            checkpoints.check_last(path, network())


@pytest.mark.parametrize("content", ["", "{", "[1]", "{}", '{"metrics": 3}'])
def test_scores_that_cannot_be_read_are_told(tmp_path, content):
    (tmp_path / "results.json").write_text(content)
    with pytest.raises(DataError, match=r"results\.json is damaged"):
        RunFolder(tmp_path).results()


# -- a folder that was tampered with -------------------------------------------------------------

FILES = ("config.yaml", "last.ckpt", "metrics.csv", "results.json", "weights.pt")


@pytest.fixture(scope="module")
def halfway(tmp_path_factory) -> Path:
    """The folder of a run that was stopped after its training, before its scores."""
    root = tmp_path_factory.mktemp("halfway")
    process = start_run(
        root / "run", "pretext=rotnet", "stages.pretext.epochs=1", "epochs=2", f"cache_dir={root / 'cache'}"
    )
    assert process.wait() == 0, process.output
    return root


CONTENTS = {
    "empty": b"",
    "text": b"hello",
    "zeros": bytes(3000),
    "other JSON": b"[1, 2]",
    "other YAML": b"a: [1",
    "a list": b"- 1\n- 2\n",
    "no text": b"\xff\xfe\x00\xd8" * 10,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_of_a_run_folder_is_named_or_made_anew(halfway, tmp_path, name):
    shutil.copytree(halfway / "cache", tmp_path / "cache")
    expected = checkpoints.load(halfway / "run" / "weights.pt")["state_dict"]
    for what, content in CONTENTS.items():
        folder = tmp_path / what
        shutil.copytree(halfway / "run", folder)
        if name != "results.json":
            (folder / "results.json").unlink()
        (folder / name).write_bytes(content)
        arguments = [
            "pretext=rotnet",
            "stages.pretext.epochs=1",
            "epochs=2",
            f"cache_dir={tmp_path / 'cache'}",
            "resume=true",
        ]
        process = start_run(folder, *arguments, log=tmp_path / f"{what}.log")
        code = process.wait()
        assert "Traceback" not in process.output, (what, process.output)
        if code == 2:
            assert re.search(r"^error: ", process.output, re.MULTILINE), process.output
            assert str(folder) in process.output, (what, process.output)
        else:
            assert code == 0, (what, process.output)
            found = checkpoints.load(folder / "weights.pt")["state_dict"]
            assert all(torch.equal(expected[k], t) for k, t in found.items())


@pytest.mark.slow
def test_a_checkpoint_of_another_run_is_not_gone_on_with(halfway, tmp_path):
    """A ``last.ckpt`` that was copied from elsewhere, with other weights or none of Lightning's entries."""
    shutil.copytree(halfway / "cache", tmp_path / "cache")
    honest = checkpoints.load(halfway / "run" / "last.ckpt")
    tampered = {
        "weights alone": {"state_dict": honest["state_dict"]},
        "without the optimizer": {k: v for k, v in honest.items() if k != "optimizer_states"},
        "without the loops": {k: v for k, v in honest.items() if k != "loops"},
        "without the callbacks": {k: v for k, v in honest.items() if k != "callbacks"},
        "without a weight": honest | {"state_dict": dict(list(honest["state_dict"].items())[1:])},
        "with another weight": honest | {"state_dict": {**honest["state_dict"], "x": torch.ones(2)}},
        "with another shape": honest | {"state_dict": {k: torch.ones(3) for k in honest["state_dict"]}},
        "a list": [1, 2],
        "a tensor": torch.ones(3),
        "nothing": {},
    }
    for what, content in tampered.items():
        folder = tmp_path / what
        shutil.copytree(halfway / "run", folder)
        for left in ("results.json", "weights.pt"):
            (folder / left).unlink()
        checkpoints.save(content, folder / "last.ckpt")
        arguments = [
            "pretext=rotnet",
            "stages.pretext.epochs=1",
            "epochs=2",
            f"cache_dir={tmp_path / 'cache'}",
            "resume=true",
        ]
        process = start_run(folder, *arguments, log=tmp_path / f"{what}.log")
        assert process.wait() == 2, (what, process.output)
        assert "Traceback" not in process.output, (what, process.output)
        assert "last.ckpt" in process.output, (what, process.output)


@pytest.mark.slow
def test_a_damaged_stage_in_the_cache_is_named(halfway, tmp_path):
    for what, content in CONTENTS.items():
        cache = tmp_path / f"{what} cache"
        shutil.copytree(halfway / "cache", cache)
        (weights,) = cache.glob("stages/*/weights.pt")
        weights.write_bytes(content)
        arguments = [*TINY, f"run_dir={tmp_path / what}", f"cache_dir={cache}", "pretext=rotnet"]
        arguments += ["stages.pretext.epochs=1", "epochs=2"]
        process = Process(command_line, arguments, log=tmp_path / f"{what}.log")
        assert process.wait() == 2, (what, process.output)
        assert str(weights) in process.output
        assert "Traceback" not in process.output
