"""Reuters-10K from the documents of RCV1, as DEC made it (Xie et al., 2016, section 4.1)."""

from __future__ import annotations

import gzip
import io
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any
from xml.etree import ElementTree

import numpy as np

from scarcely.errors import DataError
from scarcely.files import write_atomically

__all__ = ["ROOTS", "build", "sources"]

ROOTS = ("CCAT", "ECAT", "GCAT", "MCAT")  # the four root categories
TERMS, DOCUMENTS = 2_000, 10_000
_TOKENS, _TOPICS = "lyrl2004_tokens_*.dat*", "rcv1-v2.topics.qrels*"
_STORIES = ("*.zip", "*newsML.xml")


def sources(folder: Path) -> str:
    """Return which form of the raw documents a folder holds: ``tokens``, ``stories``, or nothing."""
    if any(folder.glob(_TOKENS)) and any(folder.glob(_TOPICS)):
        return "tokens"
    return "stories" if any(next(folder.rglob(pattern), None) for pattern in _STORIES) else ""


def build(folder: Path, file: Path, seed: int = 0, documents: int = DOCUMENTS, terms: int = TERMS) -> None:
    """Count the terms of raw documents and write the matrix that `Reuters10k` reads.

    Documents with exactly one root category count. Of all of them the most frequent terms are taken. A term
    that occurs tf times in a document, and in df of n, weighs (1 + ln tf)·(1 + ln((1 + n) / (1 + df))); rows
    have length √terms. A random subset of those that have any of these terms is written.

    Args:
        folder: with ``lyrl2004_tokens_*.dat`` and ``rcv1-v2.topics.qrels`` (Lewis et al., 2004: stems,
            stop words left out), plain or as ``.gz``; or the stories as Reuters gave them out,
            ``*newsML.xml`` below it or in ``*.zip``: their headlines and texts without English stop words.
        file: to write.
        seed: of the subset.
        documents, terms: how many; fewer documents if there are not so many.

    Raises:
        DataError: a file cannot be read, no document has a single root category, or there are too few terms.
    """
    from scipy.sparse import save_npz
    from sklearn.feature_extraction.text import CountVectorizer, TfidfTransformer

    kind = sources(folder)
    labels: list[int] = []
    texts = _labelled(_tokens(folder) if kind == "tokens" else _stories(folder), labels)
    stems = {"tokenizer": str.split, "token_pattern": None, "lowercase": False}
    words = {"stop_words": "english", "token_pattern": r"(?u)\b[^\W\d_]{2,}\b"}
    counter = CountVectorizer(max_features=terms, dtype=np.float32, **(stems if kind == "tokens" else words))
    try:
        counts = counter.fit_transform(_shown(texts, folder))
    except ValueError as error:  # an empty vocabulary
        raise _nothing(folder) from error
    if counts.shape[1] < terms:
        raise DataError(
            f"the documents in {folder} have {counts.shape[1]:,} terms",
            where="data.root",
            instead=f"more documents: {terms:,} terms are taken",
        )
    weights = TfidfTransformer(norm="l2", sublinear_tf=True).fit_transform(counts).astype(np.float32)
    filled = np.flatnonzero(np.diff(weights.indptr))
    chosen = np.random.default_rng(seed).permutation(filled)[:documents]
    matrix = (weights[chosen] * np.float32(np.sqrt(terms))).tocsr()
    content = io.BytesIO()
    save_npz(content, matrix)
    content.seek(0)
    arrays = dict(np.load(content))
    arrays |= {"labels": np.array(labels)[chosen], "classes": np.array(ROOTS)}
    arrays["vocabulary"] = counter.get_feature_names_out().astype(np.str_)
    write_atomically(file, lambda stream: np.savez_compressed(stream, **arrays))


def _labelled(documents: Iterable[tuple[set[str], str]], labels: list[int]) -> Iterator[str]:
    """Give the texts of documents with a single root category, and note which it is."""
    for topics, text in documents:
        roots = topics.intersection(ROOTS)
        if len(roots) == 1:
            labels.append(ROOTS.index(roots.pop()))
            yield text


def _shown(texts: Iterator[str], folder: Path) -> Iterator[str]:
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}: {task.completed:,} documents"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(f"reading {folder.name}", total=None)
        for text in texts:
            progress.advance(task)
            yield text


def _nothing(folder: Path) -> DataError:
    return DataError(
        f"no document in {folder} has exactly one of the categories {', '.join(ROOTS)}",
        where="data.root",
        instead="the documents of RCV1 with their topics",
    )


# -- stems and topics in files of their own -------------------------------------------------------


def _opened(file: Path) -> IO[str]:
    if file.suffix == ".gz":
        return gzip.open(file, "rt", encoding="latin-1")
    return open(file, encoding="latin-1")


def _tokens(folder: Path) -> Iterator[tuple[set[str], str]]:
    """Give topics and stems of each document: lines ``.I NUMBER``, ``.W``, stems, an empty one."""
    topics = _topics(folder)
    for file in sorted(folder.glob(_TOKENS)):
        number, words = "", list[str]()
        try:
            with _opened(file) as lines:
                for line in lines:
                    if line.startswith(".I "):
                        if number:
                            yield topics.get(number, set()), " ".join(words)
                        number, words = line[3:].strip(), []
                    elif not line.startswith(".W"):
                        words.append(line.strip())
        except (OSError, EOFError) as error:
            raise DataError(f"cannot read {file}: {error}", where="data.root") from error
        if number:
            yield topics.get(number, set()), " ".join(words)


def _topics(folder: Path) -> dict[str, set[str]]:
    """Return the topics of each document: lines ``TOPIC NUMBER 1``."""
    found: dict[str, set[str]] = {}
    file = sorted(folder.glob(_TOPICS))[0]
    with _opened(file) as lines:
        for at, line in enumerate(lines, start=1):
            parts = line.split()
            if len(parts) < 2:
                raise DataError(f"line {at} of {file} is no TOPIC NUMBER 1", where="data.root")
            if parts[0] in ROOTS:
                found.setdefault(parts[1], set()).add(parts[0])
    return found


# -- stories as they were given out ---------------------------------------------------------------


def _stories(folder: Path) -> Iterator[tuple[set[str], str]]:
    for file in sorted(folder.rglob("*.zip")):
        try:
            with zipfile.ZipFile(file) as archive:
                for name in sorted(archive.namelist()):
                    if name.endswith(".xml"):
                        yield _story(archive.read(name), f"{file}: {name}")
        except (OSError, zipfile.BadZipFile) as error:
            raise DataError(f"cannot read {file}: {error}", where="data.root") from error
    for file in sorted(folder.rglob("*newsML.xml")):
        yield _story(file.read_bytes(), str(file))


def _story(content: bytes, name: str) -> tuple[set[str], str]:
    try:
        tree: Any = ElementTree.fromstring(content)
    except ElementTree.ParseError as error:
        raise DataError(f"{name} is no story of RCV1: {error}", where="data.root") from error
    codes = tree.iterfind(".//codes[@class='bip:topics:1.0']/code")
    paragraphs = [tree.findtext("headline") or "", *(p.text or "" for p in tree.iterfind("text/p"))]
    return {code.get("code", "") for code in codes}, "\n".join(paragraphs)
