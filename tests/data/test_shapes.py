"""Shapes on textured ground: what is drawn is what is annotated."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from scarcely.data.shapes import LOW_CONTRAST, SHAPES, Shapes, _paint
from scarcely.errors import ConfigError
from tests.config.composing import sound

from .files import RGB


def shapes_of(**options) -> Shapes:
    module = Shapes(augmentation=RGB, **{"train_images": 90, "test_images": 20, **options})
    module.setup()
    return module


@pytest.fixture(scope="module")
def shapes() -> Shapes:
    return shapes_of()


def outline(mask: Tensor) -> list[float]:
    """Return two ratios, of circles around the centre of a mask: its area over that of the smallest that
    holds it, and the area of the largest that it holds (0 where the centre is outside) over its own."""
    inside, outside = mask.nonzero().float(), (~mask).nonzero().float()
    middle = inside.mean(dim=0)
    reach = (inside - middle).norm(dim=1).max()
    room = (outside - middle).norm(dim=1).min()
    area = mask.sum()
    return [float(area / (torch.pi * reach**2)), float(torch.pi * room**2 / area)]


def test_every_object_covers_two_to_eight_percent(shapes):
    for image in shapes.objects("train", "all"):
        shares = image.masks.flatten(1).float().mean(dim=1)
        assert (shares >= 0.02).all()
        assert (shares <= 0.08).all()


@pytest.mark.parametrize("options", [{}, {"min_objects": 6, "max_objects": 6}, {"shapes": ["ring", "star"]}])
def test_an_image_shows_three_classes_and_as_many_objects_as_asked_for(options):
    module = shapes_of(**options)
    counts = set()
    for image in module.objects("test", "split"):
        counts.add(len(image.labels))
        assert len(set(image.labels.tolist())) >= min(3, module.num_classes)
    assert counts == set(range(module.min_objects, module.max_objects + 1))


def test_objects_are_whole_and_apart(shapes):
    for image in shapes.objects("train", "split"):
        assert int(image.masks.sum(dim=0).max()) == 1
        # Of the largest disc, 20 pixels of radius, that touches an edge, 9 pixels lie along it.
        for edge in (image.masks[:, 0], image.masks[:, -1], image.masks[:, :, 0], image.masks[:, :, -1]):
            assert int(edge.sum(dim=1).max()) <= 10


def test_boxes_are_the_smallest_around_their_masks(shapes):
    for image in shapes.annotated("train", "split"):
        for box, mask in zip(image.boxes.tolist(), image.masks(), strict=True):
            rows, columns = mask.nonzero().unbind(dim=1)
            assert box == [
                int(columns.min()),
                int(rows.min()),
                int(columns.max()) + 1,
                int(rows.max()) + 1,
            ]


def test_each_class_is_drawn_as_its_shape(shapes):
    """Area over that of the circumscribed circle, and the inscribed circle over the area, are known."""
    expected = {  # of a shape of area 1 with the circumradius R and the inradius r: 1 / (pi R²) and pi r²
        "disc": (1.0, 1.0),
        "square": (0.637, 0.785),
        "triangle": (0.413, 0.605),
        "ring": (0.75, 0.0),
        "cross": (0.637, 0.314),  # the inner corners
        "star": (0.357, 0.409),
    }
    found: dict[str, list[list[float]]] = {name: [] for name in SHAPES}
    for image in shapes.objects("test", "split"):
        for label, mask in zip(image.labels.tolist(), image.masks, strict=True):
            found[shapes.classes[label]].append(outline(mask))
    for name, values in found.items():
        middle = torch.tensor(values).median(dim=0).values
        torch.testing.assert_close(middle, torch.tensor(expected[name]), atol=0.09, rtol=0)


def test_difficult_is_what_hardly_differs_from_the_ground_that_it_hides(shapes):
    images = shapes.annotated("train", "split")[:24]
    owner = torch.stack(
        [(one.masks() * torch.arange(1, 6)[: len(one.labels), None, None]).sum(0) for one in images]
    )
    painted, difficult = _paint(torch.Generator().manual_seed(3), owner, 5)
    ground, _ = _paint(torch.Generator().manual_seed(3), torch.zeros_like(owner), 5)
    assert torch.equal(painted[owner == 0], ground[owner == 0])
    assert 0 < sum(int(one.difficult.sum()) for one in images) < 24
    for i, one in enumerate(images):
        for number, mask in enumerate(one.masks()):
            sums = [0.0] * 3
            for row, column in mask.nonzero().tolist():
                difference = painted[i, row, column].tolist(), ground[i, row, column].tolist()
                sums = [s + a - b for s, a, b in zip(sums, *difference, strict=True)]
            distance = math.sqrt(sum((s / int(mask.sum())) ** 2 for s in sums))
            assert bool(difficult[i, number]) == (distance < LOW_CONTRAST)


def test_the_label_is_the_class_of_the_largest_box_that_is_not_difficult(shapes):
    for label, image in zip(
        shapes.pool("train", "all").labels.tolist(), shapes.annotated("train", "all"), strict=True
    ):
        best, wanted = 0.0, -1
        for box, of, hard in zip(image.boxes.tolist(), image.labels.tolist(), image.difficult, strict=True):
            area = (box[2] - box[0]) * (box[3] - box[1])
            if not hard and area > best:
                best, wanted = area, of
        assert label == wanted


def test_targets_leave_out_classes_that_are_difficult_throughout(shapes):
    targets = shapes.targets("train", "all")
    assert (targets == -1).any()
    for row, image in zip(targets.tolist(), shapes.annotated("train", "all"), strict=True):
        for label, value in enumerate(row):
            flags = [
                hard
                for of, hard in zip(image.labels.tolist(), image.difficult.tolist(), strict=True)
                if of == label
            ]
            assert value == (0 if not flags else -1 if all(flags) else 1)


def test_annotations_are_in_the_order_of_the_pool(shapes):
    assert len(shapes.objects("train", "all")) == len(shapes.pool("train", "all")) == 110
    names = [image.name for image in shapes.objects("train", "all")]
    assert names[:90] == [image.name for image in shapes.objects("train", "split")]
    assert names[90:] == [image.name for image in shapes.objects("test", "split")]
    labelled = shapes.annotated("labelled", "split")
    assert [one.largest() for one in labelled] == shapes.pool("labelled", "split").labels.tolist()


def test_images_are_a_function_of_the_data_seed_and_not_of_their_number(shapes):
    again, fewer = shapes_of(), shapes_of(train_images=70)
    assert again.fingerprint() == shapes.fingerprint() != shapes_of(data_seed=1).fingerprint()
    assert torch.equal(fewer.parts["train"].inputs, shapes.parts["train"].inputs[:70])
    assert not torch.equal(shapes.parts["train"].inputs[:20], shapes.parts["test"].inputs)


def test_the_original_is_the_sample_at_any_size(shapes):
    sample = shapes.pool("train", "all").inputs[95]
    assert torch.equal(shapes.original("train", "all", 95), sample)
    half = shapes.original("train", "all", 95, shorter=64).float()
    assert half.shape == (64, 64, 3)
    means = sample.float().unfold(0, 2, 2).unfold(1, 2, 2).mean(dim=(3, 4))
    assert (half - means).abs().mean() < 8, "resized with antialiasing"


def test_boxes_are_seen_instead_of_masks_where_they_are_asked_for():
    image = shapes_of(regions="boxes").objects("test", "split")[0]
    assert image.masks is None
    assert image.boxes.shape == (len(image.labels), 4)


@pytest.mark.parametrize(
    "options", [{"shapes": ["disc"]}, {"shapes": ["disc", "disc"]}, {"shapes": ["disc", "blob", "star"]}]
)
def test_shapes_that_there_are_not_are_refused(options):
    with pytest.raises(ConfigError, match=r"data\.shapes is") as error:
        shapes_of(**options)
    assert "triangle" in str(error.value.instead)


def test_fewer_objects_at_most_than_at_least_are_refused():
    with pytest.raises(ConfigError, match="at least 5 objects"):
        shapes_of(min_objects=5, max_objects=4)


def test_the_configuration_is_sound():
    assert sound("data=shapes", "method=supervised", "protocol=split")["data"]["image_size"] == 128
