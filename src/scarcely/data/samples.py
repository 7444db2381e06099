"""Samples as arrays: every data set ends up as one of these, images as uint8, vectors as float32."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

__all__ = ["Samples"]

_CHUNK_BYTES = 16 << 20


@dataclass(frozen=True, eq=False)
class Samples:
    """A set of samples held as tensors.

    Images stay uint8 in the order in which they are decoded, (H, W, C): a quarter of the memory of
    floats, and the rows of a crop are contiguous. Normalisation happens on the batch.

    Attributes:
        inputs: images (N, H, W, C) uint8, or vectors (N, D) float32; in memory, memory-mapped or on
            a device.
        labels: (N,) int64, -1 where the class is unknown; on the device of the inputs.
        names: file of each sample, relative to the root, where samples are files.
        source: hash of the content of `inputs`, given by whoever memory-mapped them; `fingerprint`
            uses it instead of reading the whole file, and loaders read such inputs in the background.

    Raises:
        ValueError: shapes, types or lengths do not fit together.
    """

    inputs: Tensor
    labels: Tensor
    names: tuple[str, ...] | None = None
    source: str | None = None

    def __post_init__(self) -> None:
        x, y = self.inputs, self.labels
        images = x.dtype == torch.uint8 and x.ndim == 4
        vectors = x.dtype == torch.float32 and x.ndim == 2
        if not (images or vectors):
            raise ValueError(
                "inputs must be images (N, H, W, C) uint8 or vectors (N, D) float32,"
                f" not {tuple(x.shape)} {x.dtype}"
            )
        if 0 in x.shape[1:]:
            raise ValueError(f"inputs have an empty dimension: {tuple(x.shape)}")
        if y.dtype != torch.int64 or y.shape != x.shape[:1]:
            raise ValueError(
                f"labels must be ({len(x)},) int64, one for each input, not {tuple(y.shape)} {y.dtype}"
            )
        if x.device != y.device:
            raise ValueError(f"inputs are on {x.device} but labels on {y.device}")
        if self.names is not None and len(self.names) != len(x):
            raise ValueError(f"{len(self.names)} names for {len(x)} inputs")

    def __len__(self) -> int:
        return len(self.inputs)

    @property
    def kind(self) -> Literal["images", "vectors"]:
        """What one sample is."""
        return "images" if self.inputs.ndim == 4 else "vectors"

    @property
    def labelled(self) -> bool:
        """Whether the class of any sample is known."""
        return bool((self.labels >= 0).any())

    @property
    def nbytes(self) -> int:
        """Bytes of inputs and labels."""
        return self.inputs.nbytes + self.labels.nbytes

    @property
    def device(self) -> torch.device:
        """Where inputs and labels lie."""
        return self.inputs.device

    def select(self, index: Tensor | slice) -> Samples:
        """Return the samples at `index`.

        Args:
            index: (n,) int64 positions, or (N,) bool, which copy the chosen rows (those of a memory
                map into memory); or a slice, which copies nothing.
        """
        if isinstance(index, slice):
            names = self.names[index] if self.names is not None else None
            tag = repr(index.indices(len(self))).encode()
            inputs, labels = self.inputs[index], self.labels[index]
        else:
            if index.dtype == torch.bool:
                if index.shape != self.labels.shape:
                    raise ValueError(f"a mask of {tuple(index.shape)} for {len(self)} samples")
                index = index.nonzero().flatten()
            index = index.to(self.device, torch.int64)
            rows = index.tolist()
            names = tuple(self.names[i] for i in rows) if self.names is not None else None
            tag = repr(rows).encode() if self.source else b""
            inputs, labels = self.inputs.index_select(0, index), self.labels.index_select(0, index)
        source = _digest(self.source.encode(), tag) if self.source else None
        return Samples(inputs, labels, names, source)

    def to(self, device: torch.device | str) -> Samples:
        """Return the samples on `device`; nothing is copied if they are there already."""
        inputs, labels = self.inputs.to(device), self.labels.to(device)
        return self if inputs is self.inputs else replace(self, inputs=inputs, labels=labels)

    @staticmethod
    def concat(parts: Sequence[Samples]) -> Samples:
        """Join samples of one shape in the order given.

        A single non-empty part is returned as it is, and slices of one tensor that follow one another
        there are a longer slice. Others are copied into one new tensor in memory, memory maps too: sets
        too large for that must be written as one map to begin with. Names are kept only if every part
        has them.

        Raises:
            ValueError: no part given, or parts of different shapes or kinds.
        """
        if not parts:
            raise ValueError("nothing to join")
        filled = [part for part in parts if len(part)] or list(parts[:1])
        shapes = {(part.inputs.shape[1:], part.inputs.dtype) for part in filled}
        if len(shapes) > 1:
            shown = sorted(str(tuple(shape)) for shape, _ in shapes)
            raise ValueError(f"samples of different shapes cannot be joined: {', '.join(shown)}")
        if len(filled) == 1:
            return filled[0]
        names: tuple[str, ...] | None = ()
        for part in filled:
            names = None if names is None or part.names is None else names + part.names
        source = None
        if all(part.source for part in filled):
            source = _digest(*(f"{part.source}:{len(part)}".encode() for part in filled))
        return Samples(
            _joined([part.inputs for part in filled]),
            torch.cat([part.labels for part in filled]),
            names,
            source,
        )

    def fingerprint(self, labels: bool = True) -> str:
        """Return a hash (32 hex digits) of type, shape and content of inputs and labels.

        Without `labels` it is of the inputs alone, for stages that see no label. Inputs are read in
        chunks, so that nothing is copied whole; those with a `source` are not read at all. The same
        content with and without a `source` has different fingerprints.
        """
        digest = hashlib.blake2b(digest_size=16)
        for name, tensor in (("inputs", self.inputs), ("labels", self.labels))[: 1 + labels]:
            digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)}:".encode())
            if name == "inputs" and self.source:
                digest.update(self.source.encode())
                continue
            rows = max(1, _CHUNK_BYTES // max(1, tensor.nbytes // max(1, len(tensor))))
            for chunk in tensor.split(rows):
                digest.update(chunk.cpu().contiguous().numpy().data)
        return digest.hexdigest()


def _joined(tensors: list[Tensor]) -> Tensor:
    first, end = tensors[0], tensors[0].data_ptr()
    for tensor in tensors:
        same = tensor.untyped_storage().data_ptr() == first.untyped_storage().data_ptr()
        if not same or tensor.data_ptr() != end or not tensor.is_contiguous():
            return torch.cat(tensors)
        end += tensor.nbytes
    return first.as_strided((sum(map(len, tensors)), *first.shape[1:]), first.stride())


def _digest(*parts: bytes) -> str:
    return hashlib.blake2b(b"\x1f".join(parts), digest_size=16).hexdigest()
