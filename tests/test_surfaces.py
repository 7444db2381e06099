"""The figure of the Π-model on two moons: what is drawn, and that the run separates them."""

from __future__ import annotations

import pytest
import torch

from scarcely import checkpoints, stages, two_moons
from scarcely.functional.ramp import sigmoid_rampup
from scarcely.surfaces import EXPERIMENT, draw, grid_over, surfaces_of
from tests.runs import compose, data_of, job_of, train_here


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The run of the figure, as its experiment says."""
    config = compose(f"experiment={EXPERIMENT}", "trainer=cpu", "seed=1", base=())
    data = data_of(config)
    job = job_of(config, data)
    return train_here(job, tmp_path_factory.mktemp("moons") / "run", data), job, data


def test_the_border_is_stretched_until_both_moons_are_right(run):
    folder, job, data = run
    surfaces, points, labels = surfaces_of(folder)
    assert [s.epoch for s in surfaces] == job.keep == [5, 15, 100]
    assert [s.weight for s in surfaces] == [100 * sigmoid_rampup(epoch - 1, 80) for epoch in (5, 15, 100)]
    assert torch.equal(torch.bincount(labels[labels >= 0]), torch.tensor([6, 6]))
    assert len(points) == 800
    first, last = surfaces[0].accuracy, surfaces[-1].accuracy
    assert first < 0.95
    assert last > 0.99
    method = stages.build_method(job, data.input_shape)
    for epoch, right in [(5, 12), (100, 12)]:  # tight around the anchors from the beginning
        content = checkpoints.load(folder / f"weights-epoch{epoch}.pt")
        method.load_state_dict(content["state_dict"])
        assert int((method(points[labels >= 0]).argmax(dim=1) == labels[labels >= 0]).sum()) == right


def test_a_surface_is_the_softmax_of_the_network_on_the_grid(run):
    folder, job, data = run
    surfaces, points, _ = surfaces_of(folder)
    grid, (left, right, lower, upper) = grid_over(points)
    method = stages.build_method(job, data.input_shape)
    for surface in surfaces:
        content = checkpoints.load(folder / f"weights-epoch{surface.epoch}.pt")
        method.load_state_dict(content["state_dict"])
        height, width = surface.probabilities.shape[:2]
        for i, j in [(0, 0), (height - 1, 0), (0, width - 1), (height // 2, width // 3)]:
            point = torch.tensor([left + 0.02 * (j + 0.5), lower + 0.02 * (i + 0.5)])
            torch.testing.assert_close(grid[i, j], point, rtol=0, atol=1e-4)
            expected = method(grid[i, j][None]).softmax(dim=1)[0].detach()
            found = torch.from_numpy(surface.probabilities[i, j])
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert left < points[:, 0].min() - 0.2
    assert right > points[:, 0].max() + 0.2
    assert lower < points[:, 1].min() - 0.2
    assert upper > points[:, 1].max() + 0.2


def test_the_weights_of_the_last_epoch_are_kept_as_they_are_handed_on(run):
    folder, _, _ = run
    kept, last = (checkpoints.load(folder / name) for name in ("weights-epoch100.pt", "weights.pt"))
    assert set(kept) == set(last)
    assert kept["epochs"] == last["epochs"] == 100
    assert all(torch.equal(kept["state_dict"][n], t) for n, t in last["state_dict"].items())


def test_the_darker_the_surer(run):
    surfaces, points, labels = surfaces_of(run[0])
    figure = draw(surfaces, points.numpy(), labels.numpy())
    panels = figure.axes
    assert len(panels) == 3
    assert panels[2].get_title(loc="left").startswith("epoch 100, consistency × 100: ")
    image = panels[0].images[0].get_array()
    sure = surfaces[0].probabilities.max(axis=2)
    light = image.sum(axis=2)
    for k in range(2):  # within a colour
        of_class = surfaces[0].probabilities.argmax(axis=2) == k
        order = sure[of_class].argsort()
        assert (light[of_class][order][1:] <= light[of_class][order][:-1] + 1e-6).all()


def test_the_command_draws_a_finished_run(run, tmp_path, capsys):
    out = tmp_path / "surfaces.png"
    assert two_moons.main(["surfaces", f"out={out}", f"run={run[0]}"]) == 0
    assert out.read_bytes().startswith(b"\x89PNG")
    assert "800 points, 12 labelled" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["run={}"], "keeps no weights beside the last"),
        (["edges=3"], "no setting 'edges'"),
        (["seed=x"], "seed=x"),
    ],
)
def test_what_cannot_be_drawn_is_told(given, told, tmp_path, capsys):
    arguments = [g.format(tmp_path) for g in given]
    assert two_moons.main(["surfaces", f"out={tmp_path / 'a.png'}", *arguments]) == 2
    assert told in capsys.readouterr().err
