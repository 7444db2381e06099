"""The pretext's accuracy beside what came of it: cells computed by hand, each pretext counted once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from scarcely.reports.compare import main
from scarcely.reports.pretext_quality import collect, markdown, notes
from scarcely.reports.runs import find_runs


def write(folder: Path, method: str, seed: int, epoch: int | None, test: float, whole: int = 200) -> None:
    folder.mkdir(parents=True)
    metrics = {"test/accuracy": test}
    if epoch is not None:
        metrics |= {"pretext/epoch": float(epoch), "pretext/accuracy": epoch / 250 + seed / 100}
    stages = [{"name": "pretext", "epochs": whole}, {"name": "train", "epochs": 5}]
    results = {"method": method, "data": "cifar100", "seed": seed, "protocol": "split"}
    (folder / "results.json").write_text(json.dumps(results | {"metrics": metrics, "stages": stages}))
    (folder / "config.yaml").write_text(yaml.safe_dump({"seed": seed, "pretext_epoch": epoch}))


@pytest.fixture
def runs(tmp_path):
    for method, better in (("supervised", 0.0), ("alternating_ssl", 0.1)):
        for seed in (0, 2):
            for epoch in (60, 200):
                write(tmp_path / f"{method}{seed}{epoch}", method, seed, epoch, 0.4 + better + seed / 100)
    return tmp_path


def cells(folder):
    rows = markdown(collect(find_runs([str(folder)]))).splitlines()
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows if "---" not in row]


def test_rows_are_rotations_then_methods_and_a_pretext_counts_once(runs):
    assert cells(runs) == [
        ["epochs", "60", "200"],
        # 24 and 26 %: one network a seed, though two runs began with it
        ["rotation accuracy", "25.0 ± 1.4 (2 runs)", "81.0 ± 1.4 (2 runs)"],
        ["alternating_ssl", "51.0 ± 1.4 (2 runs)", "51.0 ± 1.4 (2 runs)"],
        ["labelled set alone", "41.0 ± 1.4 (2 runs)", "41.0 ± 1.4 (2 runs)"],
    ]


def test_a_pretext_of_another_length_has_a_column_of_its_own(runs):
    write(runs / "long", "alternating_ssl", 0, 200, 0.6, whole=500)
    assert cells(runs)[0] == ["epochs", "60 of 200", "200 of 200", "200 of 500"]


def test_runs_without_a_pretext_are_told_and_left_out(runs):
    write(runs / "none", "alternating_ssl", 0, None, 0.9)
    found = find_runs([str(runs)])
    assert notes(found, collect(found))[0].startswith("1 of 9 runs are left out")


def test_the_command_prints_the_table_or_says_what_is_missing(runs, tmp_path, capsys):
    assert main(["pretext", str(runs)]) == 0
    assert "rotation accuracy" in capsys.readouterr().out
    assert main(["pretext", str(runs), "--markdown"]) == 0
    assert capsys.readouterr().out == markdown(collect(find_runs([str(runs)])))
    write(tmp_path / "other" / "none", "alternating_ssl", 0, None, 0.9)
    assert main(["pretext", str(tmp_path / "other")]) == 2
    assert "pretext_epoch" in capsys.readouterr().err
