from __future__ import annotations

import numpy as np
import pytest
import torch

from scarcely.data.samples import Samples


def _samples(n: int = 6, seed: int = 0, names: bool = False, source: str | None = None) -> Samples:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (n, 4, 5, 3), dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, 3, (n,), generator=generator)
    return Samples(images, labels, tuple(f"{seed}/{i}" for i in range(n)) if names else None, source)


@pytest.mark.parametrize(
    ("inputs", "labels", "names", "message"),
    [
        (torch.zeros(2, 4, 4, 3), torch.zeros(2, dtype=torch.int64), None, "images"),
        (torch.zeros(2, 4, 4, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64), None, "images"),
        (torch.zeros(2, 4, dtype=torch.float64), torch.zeros(2, dtype=torch.int64), None, "vectors"),
        (torch.zeros(2, 0), torch.zeros(2, dtype=torch.int64), None, "empty dimension"),
        (torch.zeros(2, 4), torch.zeros(3, dtype=torch.int64), None, "labels"),
        (torch.zeros(2, 4), torch.zeros(2, dtype=torch.int32), None, "int64"),
        (torch.zeros(2, 4), torch.zeros(2, dtype=torch.int64), ("a",), "1 names"),
    ],
)
def test_parts_that_do_not_fit_are_refused(inputs, labels, names, message):
    with pytest.raises(ValueError, match=message):
        Samples(inputs, labels, names)


def test_kind_and_labelled_follow_the_content():
    assert _samples().kind == "images"
    vectors = Samples(torch.zeros(2, 3), torch.tensor([-1, -1]))
    assert vectors.kind == "vectors"
    assert not vectors.labelled
    assert Samples(torch.zeros(2, 3), torch.tensor([-1, 0])).labelled


def test_select_by_positions_mask_and_slice_agree():
    samples = _samples(names=True)
    mask = torch.tensor([False, True, True, False, False, False])
    for chosen in (samples.select(torch.tensor([1, 2])), samples.select(mask), samples.select(slice(1, 3))):
        assert torch.equal(chosen.inputs, samples.inputs[1:3])
        assert torch.equal(chosen.labels, samples.labels[1:3])
        assert chosen.names == ("0/1", "0/2")
    with pytest.raises(ValueError, match="mask"):
        samples.select(torch.tensor([True]))


def test_a_slice_copies_nothing():
    samples = _samples()
    assert samples.select(slice(2, 4)).inputs.data_ptr() == samples.inputs[2:].data_ptr()


def test_concat_joins_inputs_labels_and_names_in_order():
    a, b = _samples(2, 0, names=True), _samples(3, 1, names=True)
    joined = Samples.concat([a, b])
    assert torch.equal(joined.inputs, torch.cat([a.inputs, b.inputs]))
    assert torch.equal(joined.labels, torch.cat([a.labels, b.labels]))
    assert joined.names == ("0/0", "0/1", "1/0", "1/1", "1/2")


def test_concat_drops_names_unless_all_have_them():
    assert Samples.concat([_samples(2, names=True), _samples(2)]).names is None


def test_concat_copies_nothing_when_one_part_has_all_samples():
    whole = _samples()
    assert Samples.concat([whole.select(slice(0, 0)), whole]) is whole


def test_concat_of_slices_in_their_order_copies_nothing():
    whole = _samples(names=True)
    parts = [whole.select(slice(0, 2)), whole.select(slice(2, 5)), whole.select(slice(5, 6))]
    joined = Samples.concat(parts[1:])
    assert joined.inputs.data_ptr() == whole.inputs[2:].data_ptr()
    assert torch.equal(joined.inputs, whole.inputs[2:])
    assert torch.equal(joined.labels, whole.labels[2:])
    assert joined.names == whole.names[2:]
    for others in ([parts[1], parts[0]], [parts[0], parts[2]], [parts[0], parts[0]]):
        copied = Samples.concat(others)
        assert torch.equal(copied.inputs, torch.cat([part.inputs for part in others]))
        assert copied.inputs.untyped_storage().data_ptr() != whole.inputs.untyped_storage().data_ptr()


def test_concat_of_strided_inputs_is_their_values():
    whole = _samples()
    turned = Samples(whole.inputs.transpose(1, 2), whole.labels)
    assert torch.equal(
        Samples.concat([turned.select(slice(0, 2)), turned.select(slice(2, 6))]).inputs, turned.inputs
    )


def test_concat_refuses_other_shapes_and_nothing():
    other = Samples(torch.zeros(1, 4, 4, 3, dtype=torch.uint8), torch.tensor([0]))
    with pytest.raises(ValueError, match="different shapes"):
        Samples.concat([_samples(), other])
    with pytest.raises(ValueError, match="nothing"):
        Samples.concat([])


def test_fingerprint_is_of_content_not_of_storage():
    samples = _samples()
    strided = samples.inputs.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
    assert samples.fingerprint() == Samples(strided, samples.labels.clone()).fingerprint()
    assert samples.fingerprint() == _samples(names=True).fingerprint()


def test_fingerprint_changes_with_a_pixel_a_label_a_shape_or_the_order(monkeypatch):
    monkeypatch.setattr("scarcely.data.samples._CHUNK_BYTES", 100)  # several chunks
    samples = _samples()
    pixel, label = samples.inputs.clone(), samples.labels.clone()
    pixel[-1, -1, -1, -1] += 1
    label[-1] = -1
    prints = {
        s.fingerprint()
        for s in (
            samples,
            Samples(pixel, samples.labels),
            Samples(samples.inputs, label),
            Samples(samples.inputs.view(6, 5, 4, 3), samples.labels),
            samples.select(torch.tensor([1, 0, 2, 3, 4, 5])),
            samples.select(slice(0, 5)),
        )
    }
    assert len(prints) == 6


def test_fingerprint_does_not_depend_on_the_size_of_the_chunks(monkeypatch):
    whole = _samples().fingerprint()
    monkeypatch.setattr("scarcely.data.samples._CHUNK_BYTES", 1)
    assert _samples().fingerprint() == whole


def test_fingerprint_of_a_source_reads_no_input(tmp_path):
    array = np.lib.format.open_memmap(tmp_path / "x.npy", "w+", np.uint8, (4, 2, 2, 1))
    mapped = Samples(torch.from_numpy(array), torch.arange(4), source="abc")
    before = mapped.fingerprint()
    array[0] = 7
    assert mapped.fingerprint() == before
    assert Samples(mapped.inputs, mapped.labels, source="abd").fingerprint() != before
    assert Samples(mapped.inputs, mapped.labels.flip(0), source="abc").fingerprint() != before


def test_source_follows_what_is_selected_and_joined():
    samples = Samples(torch.zeros(4, 3), torch.zeros(4, dtype=torch.int64), source="abc")
    first, second = samples.select(torch.tensor([0, 1])), samples.select(torch.tensor([0, 2]))
    # The same values and labels, but other rows of the file: only the source tells them apart.
    assert first.fingerprint() != second.fingerprint()
    assert first.fingerprint() == samples.select(torch.tensor([0, 1])).fingerprint()
    assert Samples.concat([first, second]).fingerprint() != Samples.concat([second, first]).fingerprint()
    assert Samples.concat([first, _vectors(2)]).source is None


def test_to_the_same_device_copies_nothing():
    samples = _samples(source="abc")
    assert samples.to("cpu") is samples


def _vectors(n: int) -> Samples:
    return Samples(torch.zeros(n, 3), torch.zeros(n, dtype=torch.int64))
