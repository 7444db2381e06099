"""The stages of a run over several domains: their weight decay, what they leave on the device."""

from __future__ import annotations

import gc
import weakref
from dataclasses import replace

from scarcely import checkpoints
from scarcely.data.decathlon import Decathlon
from scarcely.domains import chain
from scarcely.domains.jobs import decay_of
from tests.domains.runs import NAMES, run, write_colours


def test_weight_decay_follows_the_papers_by_the_size_of_the_training_set():
    train = {"aircraft": 3334, "dtd": 1880, "vgg-flowers": 1020, "omniglot": 17853, "ucf101": 7629}
    train |= {"daimlerpedcls": 23520, "cifar100": 40000, "gtsrb": 31367, "svhn": 47217}
    found = {name: decay_of("size", name, count) for name, count in train.items()}
    assert [n for n, d in found.items() if d == 0.002] == ["aircraft", "dtd", "vgg-flowers"]
    assert [n for n, d in found.items() if d == 0.0005] == ["omniglot", "ucf101", "daimlerpedcls"]
    assert [n for n, d in found.items() if d == 0.0001] == ["cifar100", "gtsrb", "svhn"]
    assert decay_of({"dtd": 0.1}, "dtd", 10) == 0.1
    assert decay_of({"dtd": 0.1}, "svhn", 47217) == 0.0001
    assert decay_of(0, "svhn", 47217) == 0


def test_weight_decay_is_chosen_on_the_validation_part(tmp_path, monkeypatch, capfd):
    """In the test part the two colours have changed places: who chose by it would choose the worst."""
    good, bad, cache = 5e-4, 50.0, tmp_path / "cache"
    monkeypatch.setattr(chain, "DECAYS", (bad, good))
    for name, called in (("birds", 0), ("signs", 1)):
        write_colours(tmp_path / name / "train", 2, 20)
        write_colours(tmp_path / name / "test", 2, 10, seed=1, called=called)
    of = f"{{birds: {tmp_path / 'birds'}, signs: {tmp_path / 'signs'}}}"
    given = ("method.reference=none", f"data.domains={of}", "stages.source.epochs=4", "epochs=6")

    def trained(decay: str) -> dict:
        return run(tmp_path / decay, tmp_path, cache, "parallel_adapters", *given, f"method.decay={decay}")

    results = trained("validation")
    (line,) = [line for line in capfd.readouterr().err.splitlines() if "on the validation part" in line]
    assert line.startswith(f"signs: weight decay {good:g} on the validation part (")
    (row,) = [row for row in results["domains"] if row["name"] == "signs"]
    assert (row["decay"], row["decay_chosen_on"], row["scored"]) == (good, "val", "test")
    job = checkpoints.load(tmp_path / "validation" / "domains" / "signs" / "weights.pt")["job"]
    assert job["method"]["decay"] == good
    stages = [stage["name"] for stage in results["stages"] if stage["name"].startswith("signs")]
    assert stages == [f"signs parallel_adapters{tried}" for tried in (" decay 50", " decay 0.0005", "")]
    jobs = [checkpoints.load(file)["job"] for file in cache.glob("stages/*/weights.pt")]
    parts = {job["name"]: job["data"]["scored"] for job in jobs if job["name"] in stages}
    assert parts == dict(zip(stages, ("val", "val", "auto"), strict=True))  # val: trained on train alone
    on_test = {decay: trained(f"{decay:g}")["metrics"]["domain/signs/accuracy"] for decay in (good, bad)}
    assert on_test[bad] > on_test[good] == row["accuracy"]


# -- memory ---------------------------------------------------------------------------------------


def test_the_device_holds_one_domain_and_what_scores_the_source(root, tmp_path, monkeypatch):
    """Copies, which a CPU does not need, are made as for a GPU."""
    copies: list[tuple[str, int, weakref.ref]] = []
    held = []

    def place(data, samples, device):
        copied = replace(samples, inputs=samples.inputs.clone(), source=None)
        copies.append((data.domain, len(samples), weakref.ref(copied.inputs)))
        gc.collect()  # as the run does itself where there is a GPU
        alive = [(name, count) for name, count, copy in copies if copy() is not None]
        held.append({name for name, count in alive if (name, count) != ("birds", 12)})
        return copied, True

    monkeypatch.setattr(Decathlon, "place", place)
    gc.collect()
    gc.freeze()  # what is there already need not be looked through each time
    try:
        run(tmp_path / "run", root, tmp_path / "cache", "svd_adapters", "epochs=1")
    finally:
        gc.unfreeze()
    assert max(map(len, held)) == 1
    assert set.union(*held) == {*NAMES}
    gc.collect()
    assert not [name for name, _, copy in copies if copy() is not None]
