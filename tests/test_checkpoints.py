"""Checkpoints: a full disk or a kill loses nothing, no code runs, foreign weights fit or are refused."""

from __future__ import annotations

import errno
import io
import os
import pickle
import signal
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from scarcely import checkpoints, files
from scarcely.backbones.small import SmallCNN
from scarcely.errors import CheckpointError, WriteError
from scarcely.files import remove_parts, write_atomically
from tests.runs import Process, start_run, wait_until

OLD = {"weights": torch.arange(10.0), "epoch": 3}
LARGE = {"weights": torch.zeros(100_000)}  # 400 kB


@pytest.fixture
def saved(tmp_path):
    """A checkpoint that must survive."""
    path = tmp_path / "last.ckpt"
    checkpoints.save(OLD, path)
    return path


def is_whole(path: Path) -> bool:
    """The old checkpoint is there, and nothing else is in its folder."""
    content = checkpoints.load(path)
    return (
        torch.equal(content["weights"], OLD["weights"])
        and content["epoch"] == 3
        and [p.name for p in path.parent.iterdir()] == [path.name]
    )


# Writing


def test_a_saved_checkpoint_comes_back_and_replaces_the_old_one(saved):
    checkpoints.save({"a": {"b": [1, 2.5, "c", None, torch.ones(2, dtype=torch.int64)]}}, saved)
    content = checkpoints.load(saved)
    assert content["a"]["b"][:4] == [1, 2.5, "c", None]
    assert torch.equal(content["a"]["b"][4], torch.ones(2, dtype=torch.int64))
    assert [p.name for p in saved.parent.iterdir()] == [saved.name]


class FullDisk(io.RawIOBase):
    """A file on a disk with room for so many more bytes."""

    def __init__(self, file, room, number):
        self.file, self.room, self.number = file, room, number

    def write(self, data):
        self.room -= len(data)
        if self.room < 0:
            raise OSError(self.number, os.strerror(self.number))
        return self.file.write(data)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()

    def flush(self):
        self.file.flush()

    def fileno(self):
        return self.file.fileno()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("room", [0, 1000, 300_000])
def test_a_full_disk_leaves_the_old_checkpoint_and_no_part(saved, monkeypatch, number, room):
    def opened(path, mode):
        return FullDisk(open(path, mode), room, number)

    monkeypatch.setattr(files, "open", opened, raising=False)
    with pytest.raises(WriteError) as caught:
        checkpoints.save(LARGE, saved)
    monkeypatch.undo()
    assert caught.value.what == "could not write last.ckpt: the disk is full; the previous one is whole"
    assert caught.value.where == str(saved.parent)
    assert is_whole(saved)


def test_a_sync_that_fails_leaves_the_old_checkpoint(saved, monkeypatch):
    def fsync(number):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(WriteError, match="disk is full"):
        checkpoints.save(LARGE, saved)
    assert is_whole(saved)


def test_the_data_are_on_the_disk_before_the_name_points_to_them(saved, monkeypatch):
    events = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda n: events.append(os.fstat(n).st_size) or fsync(n))
    monkeypatch.setattr(os, "replace", lambda a, b: events.append("renamed") or replace(a, b))
    checkpoints.save(LARGE, saved)
    assert events == [saved.stat().st_size, "renamed"]


def test_without_an_older_one_the_message_promises_none(tmp_path, monkeypatch):
    def fsync(number):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(WriteError) as caught:
        checkpoints.save(OLD, tmp_path / "deeper" / "new.ckpt")
    assert caught.value.what == "could not write new.ckpt: Input/output error"
    assert list((tmp_path / "deeper").iterdir()) == []


def test_a_path_below_a_file_is_one_message(saved):
    with pytest.raises(WriteError, match="could not write below"):
        checkpoints.save(OLD, saved / "below.ckpt")
    assert is_whole(saved)


def test_an_interrupted_write_leaves_the_old_checkpoint_and_stays_an_interruption(saved):
    def write(file):
        file.write(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomically(saved, write)
    assert is_whole(saved)


def test_what_cannot_be_saved_is_no_full_disk(saved):
    with pytest.raises(Exception, match="pickle") as caught:
        checkpoints.save({"f": lambda: 0}, saved)
    assert not isinstance(caught.value, WriteError)
    assert is_whole(saved)


def limit_and_save(folder: Path, size: int) -> int:
    """Save two checkpoints where no file may be larger than ``size``: the kernel refuses, no mock."""
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    checkpoints.save(OLD, folder / "last.ckpt")
    try:
        checkpoints.save(LARGE, folder / "last.ckpt")
    except WriteError as error:
        print(error)
        return 2
    return 0


@pytest.mark.slow
def test_a_write_that_the_kernel_refuses(tmp_path):
    folder = tmp_path / "checkpoints"
    process = Process(limit_and_save, folder, 50_000, log=tmp_path / "log")
    assert process.wait() == 2, process.output
    assert process.output.startswith("could not write last.ckpt: File too large; the previous one is whole\n")
    assert is_whole(folder / "last.ckpt")


def limited_run(size: int, folder: Path, arguments: list[str]) -> int:
    import resource

    from tests.runs import TINY, command_line

    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    return command_line([*TINY, f"run_dir={folder}", *arguments])


@pytest.mark.slow
def test_a_run_whose_checkpoint_cannot_be_written_ends_with_one_message_and_goes_on_later(tmp_path):
    folder = tmp_path / "run"
    arguments = ["pretext=none", "epochs=2", f"cache_dir={tmp_path / 'cache'}"]
    # enough for config.yaml and metrics.csv, not for the network
    process = Process(limited_run, 20_000, folder, arguments, log=tmp_path / "log")
    assert process.wait() == 2, process.output
    assert process.output.count("error: could not write last.ckpt: ") == 1
    assert "resume=true" in process.output
    assert "Traceback" not in process.output
    left = {p.name for p in folder.rglob("*") if p.is_file()}
    assert left == {".lock", "config.yaml", "metrics.csv", "failed.txt"}
    # with room again
    process = start_run(folder, *arguments, "resume=true")
    assert process.wait() == 0, process.output
    assert (folder / "results.json").is_file()


def save_for_ever(path: Path) -> None:
    for number in range(10**6):
        checkpoints.save({"weights": torch.full((200_000,), float(number)), "number": number}, path)


@pytest.mark.parametrize("delay", [0.0, 0.003, 0.011])
def test_a_kill_while_saving_leaves_a_whole_checkpoint(tmp_path, delay):
    path = tmp_path / "last.ckpt"
    process = Process(save_for_ever, path, log=tmp_path / "log")
    wait_until(path.exists, process)
    wait_until(lambda: list(tmp_path.glob(".last.ckpt.*.part")), process)
    wait_until(lambda until=[]: until.append(0) or len(until) * 0.004 > delay, process)
    process.send(signal.SIGKILL)
    process.wait()
    content = checkpoints.load(path)
    assert content["weights"].unique().tolist() == [content["number"]]
    remove_parts(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} <= {"last.ckpt", "log"}


# Reading


class Attack:
    """What an attacker pickles."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


@pytest.mark.parametrize(
    "write", [torch.save, lambda content, path: path.write_bytes(pickle.dumps(content))], ids=["zip", "raw"]
)
def test_a_pickle_that_would_run_code_is_refused_and_runs_none(tmp_path, write):
    trap = tmp_path / "trapped"
    write({"state_dict": {"w": torch.ones(1)}, "x": Attack(trap)}, tmp_path / "evil.ckpt")
    with pytest.raises(CheckpointError, match="would run code"):
        checkpoints.load(tmp_path / "evil.ckpt")
    assert not trap.exists()


@pytest.mark.parametrize("content", [b"", b"hello, world\n", b"PK\x03\x04 no zip", b"\x80\x02"], ids=repr)
def test_other_files_are_named_as_no_checkpoint(tmp_path, content):
    path = tmp_path / "some.file"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"some\.file") as caught:
        checkpoints.load(path)
    assert caught.value.instead


def test_half_a_checkpoint_is_named_as_unreadable(saved):
    whole = saved.read_bytes()
    saved.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match="not a readable checkpoint"):
        checkpoints.load(saved)


def test_a_run_folder_stands_for_its_weights(tmp_path, saved):
    checkpoints.save(OLD, tmp_path / "run" / "weights.pt")
    assert checkpoints.find(tmp_path / "run") == tmp_path / "run" / "weights.pt"
    assert checkpoints.find(str(saved)) == saved
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="no finished run"):
        checkpoints.find(tmp_path / "empty")
    for missing in (checkpoints.find, checkpoints.load):
        with pytest.raises(CheckpointError, match="there is no checkpoint"):
            missing(tmp_path / "nowhere.pt")


def test_lightnings_checkpoints_are_written_atomically_and_hold_no_code(saved):
    plugin = checkpoints.AtomicCheckpointIO()
    plugin.save_checkpoint(LARGE, str(saved))
    assert torch.equal(plugin.load_checkpoint(saved)["weights"], LARGE["weights"])
    plugin.remove_checkpoint(saved)
    plugin.remove_checkpoint(saved)
    assert list(saved.parent.iterdir()) == []


# Matching


def network(width=4) -> nn.Module:
    torch.manual_seed(width)
    return SmallCNN(width=width, num_features=6)


def renamed(state, prefix):
    return {prefix + name: tensor for name, tensor in state.items()}


@pytest.mark.parametrize("prefix", ["", "module.", "backbone.", "encoder.", "module.backbone.", "a.b.c."])
def test_weights_are_found_behind_any_prefix(prefix):
    source, target = network().state_dict(), SmallCNN(width=4, num_features=6)
    found = checkpoints.fill(target, renamed(source, prefix), source="x", least=1.0, where="ckpt")
    assert found.share == 1
    assert found.missing == found.reshaped == found.unexpected == []
    assert sorted(found.matched) == sorted(source)
    assert all(torch.equal(target.state_dict()[n], t) for n, t in source.items())


# letters and dots: names of modules, of which some are names in the network too
parts = st.sampled_from(["module", "backbone", "encoder", "conv1", "fc", "0", "weight", "x", "_orig_mod"])


@given(st.lists(parts, max_size=4), st.integers(0, 5), st.randoms(use_true_random=False))
@settings(deadline=None, max_examples=60, derandomize=True)
def test_random_prefixes_and_random_companions(prefix, companions, random):
    source, target = network().state_dict(), SmallCNN(width=4, num_features=6)
    tensors = renamed(source, "".join(f"{p}." for p in prefix))
    for i in range(companions):  # a head, a queue, a momentum: smaller than the network
        names = [random.choice(["head", "queue", "conv1", "fc", "1"]) for _ in range(random.randint(1, 3))]
        tensors.setdefault(".".join([*names, f"z{i}"]), torch.randn(3))
    names = list(tensors)
    random.shuffle(names)
    found = checkpoints.match(target, {n: tensors[n] for n in names})
    assert found.share == 1
    assert all(torch.equal(found.state[n], t) for n, t in source.items())
    assert len(found.unexpected) == len(tensors) - len(source)


@given(st.sets(st.integers(0, 100), max_size=12), st.sets(st.integers(0, 100), max_size=12))
@settings(deadline=None, max_examples=60, derandomize=True)
def test_the_share_counts_numbers_and_every_tensor_is_listed_once(dropped, reshaped):
    source, target = dict(network().state_dict()), SmallCNN(width=4, num_features=6)
    names = sorted(source)
    gone = {names[i % len(names)] for i in dropped}
    other = {names[i % len(names)] for i in reshaped} - gone
    tensors = {n: (torch.zeros(7, 7, 7) if n in other else t) for n, t in source.items() if n not in gone}
    found = checkpoints.match(target, tensors)
    numbers = {n: t.numel() for n, t in target.state_dict().items() if t.is_floating_point()}
    filled = sum(k for n, k in numbers.items() if n not in gone | other)
    assert found.share == pytest.approx(filled / sum(numbers.values()))
    counters = {n for n in names if n.endswith("num_batches_tracked")}  # older checkpoints have none
    assert set(found.missing) == gone - counters
    assert set(found.reshaped) == other
    assert set(found.matched) == set(names) - gone - other
    assert set(found.unexpected) == other


def test_another_network_is_refused_with_the_report_and_left_alone():
    target = SmallCNN(width=4, num_features=6)
    before = {n: t.clone() for n, t in target.state_dict().items()}
    with pytest.raises(CheckpointError) as caught:
        checkpoints.fill(target, network(8).state_dict(), source="other.pt", least=0.5, where="pretext")
    assert caught.value.where == "pretext"
    for part in ("other.pt", "of another shape", "other shape: ", "conv1.0.weight"):
        assert part in str(caught.value)
    assert all(torch.equal(target.state_dict()[n], t) for n, t in before.items())


def test_the_threshold_is_the_users():
    source = {n: t for n, t in network().state_dict().items() if not n.startswith("fc")}
    share = checkpoints.match(network(), source).share
    assert 0 < share < 1
    checkpoints.fill(network(), source, source="x", least=share, where="ckpt")
    with pytest.raises(CheckpointError):
        checkpoints.fill(network(), source, source="x", least=share + 1e-6, where="ckpt")


def test_nothing_in_common_is_refused_whatever_the_threshold():
    with pytest.raises(CheckpointError, match="another network"):
        checkpoints.fill(network(), {"a": torch.zeros(1)}, source="x", least=0.0, where="ckpt")


def test_the_report_counts_and_names_what_did_not_match():
    source = dict(network().state_dict())
    del source["conv3.0.weight"]
    source["conv2.0.weight"] = torch.zeros(1)
    source |= {f"queue{i}": torch.zeros(2) for i in range(7)}
    lines = checkpoints.match(network(), source).report("a.pt").splitlines()
    total = len(network().state_dict())
    assert lines[0].startswith("weights from a.pt: ")
    assert lines[0].endswith(f"{total - 2} tensors matched, 1 missing, 1 of another shape, 8 not used")
    assert lines[1:3] == ["  missing: conv3.0.weight", "  other shape: conv2.0.weight"]
    assert lines[3] == "  not used: conv2.0.weight, queue0, queue1, queue2, queue3 and 3 more"


@pytest.mark.parametrize("wrap", ["state_dict", "model", "module", "net", "encoder"])
def test_the_weights_are_found_inside_what_people_save(wrap):
    state = network().state_dict()
    for content in ({wrap: state, "epoch": 3}, {"state_dict": {wrap: state}, "lr": torch.ones(1)}):
        assert checkpoints.tensors_of(content).keys() == state.keys()


@pytest.mark.parametrize("content", [{}, {"epoch": 3}, [torch.zeros(1)], {"state_dict": {}}, 5], ids=repr)
def test_a_checkpoint_without_weights_says_so(content):
    with pytest.raises(CheckpointError, match="no weights"):
        checkpoints.tensors_of(content)
