"""Reuters-10K made of raw documents."""

from __future__ import annotations

import gzip
import random
import zipfile
from functools import partial

import numpy as np
import pytest
import scipy.sparse

from scarcely.data import rcv1
from scarcely.data.rcv1 import ROOTS, build, sources
from scarcely.data.text import Reuters10k
from scarcely.errors import DataError
from tests.oracles.documents import weigh_terms

TERMS = 7
WORDS = [f"stem{letter}" for letter in "abcdefghij"]
STORY = """<?xml version="1.0" encoding="iso-8859-1" ?>
<newsitem itemid="{number}"><title>no title</title><headline>{head}</headline><text>
<p>{first}</p><p>and the {rest}</p></text><copyright>(c)</copyright>
<metadata><codes class="bip:countries:1.0"><code code="MCAT"/></codes>
<codes class="bip:topics:1.0">{codes}</codes></metadata></newsitem>"""


def drawn(count: int) -> list[tuple[str, list[str], list[str]]]:
    """Draw documents: number, topics, stems; the first terms are the most frequent."""
    generator = random.Random(0)
    weights = range(2 * len(WORDS), len(WORDS), -1)
    found = []
    for number in range(count):
        topics = generator.choice(
            [["CCAT"], ["ECAT", "E11"], ["GCAT"], ["MCAT"], ["CCAT", "MCAT"], ["E11"], []]
        )
        found.append(
            (str(100 + number), topics, generator.choices(WORDS, weights, k=generator.randint(1, 9)))
        )
    return found


def write_tokens(folder, documents, packed: bool = False) -> None:
    opened = partial(gzip.open, mode="wt") if packed else partial(open, mode="w")
    end = ".gz" if packed else ""
    half = len(documents) // 2
    for name, part in (("train", documents[:half]), ("test_pt0", documents[half:])):
        with opened(folder / f"lyrl2004_tokens_{name}.dat{end}") as file:
            for number, _, words in part:
                file.write(f".I {number}\n.W\n{' '.join(words[:3])}\n{' '.join(words[3:])}\n\n")
    with opened(folder / f"rcv1-v2.topics.qrels{end}") as file:
        for number, topics, _ in documents:
            file.writelines(f"{topic} {number} 1\n" for topic in topics)


def single(documents):
    kept = [(topics, words) for _, topics, words in documents if len({*topics} & {*ROOTS}) == 1]
    return [next(ROOTS.index(t) for t in topics if t in ROOTS) for topics, _ in kept], [w for _, w in kept]


@pytest.mark.parametrize("packed", [False, True])
def test_weights_are_those_of_the_formula(tmp_path, packed):
    documents = drawn(60)
    write_tokens(tmp_path, documents, packed)
    assert sources(tmp_path) == "tokens"
    build(tmp_path, tmp_path / "out.npz", documents=1000, terms=TERMS)
    labels, words = single(documents)
    counts = {word: sum(w.count(word) for w in words) for word in WORDS}
    found = np.load(tmp_path / "out.npz")
    terms = found["vocabulary"].tolist()
    assert sorted(counts.values())[-TERMS:] == sorted(counts[term] for term in terms), "the most frequent"
    expected = weigh_terms(words, terms)
    rows = scipy.sparse.load_npz(tmp_path / "out.npz").toarray()
    seen = sorted(zip(found["labels"].tolist(), np.round(rows, 3).tolist(), strict=True))
    wanted = sorted(
        (label, np.round(np.float32(row), 3).tolist())
        for label, row in zip(labels, expected, strict=True)
        if any(row)
    )
    assert [label for label, _ in seen] == [label for label, _ in wanted]
    np.testing.assert_allclose([row for _, row in seen], [row for _, row in wanted], atol=2e-3)
    np.testing.assert_allclose((rows**2).sum(axis=1), TERMS, rtol=1e-5)
    assert found["classes"].tolist() == list(ROOTS)


def test_a_subset_is_random_and_the_same_for_the_same_seed(tmp_path):
    write_tokens(tmp_path, drawn(60))
    subsets = []
    for seed in (0, 0, 1):
        build(tmp_path, tmp_path / "out.npz", seed=seed, documents=10, terms=TERMS)
        subsets.append(scipy.sparse.load_npz(tmp_path / "out.npz").toarray())
    assert subsets[0].shape == (10, TERMS)
    assert np.array_equal(subsets[0], subsets[1])
    assert not np.array_equal(subsets[0], subsets[2])


@pytest.mark.parametrize("packed", [False, True])
def test_stories_are_read_from_folders_and_archives(tmp_path, packed):
    heads = ["Maple", "Maple", "Birch", "Willow"]
    topics = [["CCAT", "C11"], ["GCAT"], ["ECAT"], ["GCAT", "ECAT"]]
    texts = {}
    for number, (head, own) in enumerate(zip(heads, topics, strict=True)):
        codes = "".join(f'<code code="{code}"/>' for code in own)
        texts[f"day/{number}newsML.xml"] = STORY.format(
            number=number, head=head, first=f"{head} trees 99 grow", rest="Oak", codes=codes
        )
    if packed:
        with zipfile.ZipFile(tmp_path / "19960820.zip", "w") as archive:
            for name, text in texts.items():
                archive.writestr(name.removeprefix("day/"), text)
    else:
        (tmp_path / "day").mkdir()
        for name, text in texts.items():
            (tmp_path / name).write_text(text, encoding="iso-8859-1")
    build(tmp_path, tmp_path / "out.npz", documents=1000, terms=5)
    found = np.load(tmp_path / "out.npz")
    assert set(found["vocabulary"]) == {"maple", "birch", "trees", "grow", "oak"}, "no number, no stop word"
    assert sorted(found["labels"]) == [0, 1, 2], "the last has two root categories"


def test_the_set_is_made_once_and_read_from_then_on(tmp_path, monkeypatch):
    from tests.data.test_text import VECTORS

    write_tokens(tmp_path, drawn(60))
    data = Reuters10k(augmentation=VECTORS, root=str(tmp_path))
    data.check()
    with pytest.raises(DataError, match="have 10 terms"):
        data.prepare_data()
    monkeypatch.setattr(rcv1.build, "__defaults__", (0, 1000, TERMS))
    data.prepare_data()
    written = (tmp_path / "reuters10k.npz").stat().st_mtime_ns
    data.prepare_data()
    assert (tmp_path / "reuters10k.npz").stat().st_mtime_ns == written
    with pytest.raises(DataError, match="7 columns and 4 classes"):
        data.setup()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("rcv1-v2.topics.qrels", "CCAT\n", "line 1 of .* is no TOPIC NUMBER"),
        ("rcv1-v2.topics.qrels", "E11 100 1\n", "no document in .* has exactly one"),
        ("lyrl2004_tokens_train.dat.gz", "no gzip", "cannot read .*train.dat.gz"),
        ("day.zip", "no zip", "cannot read .*day.zip"),
        ("1newsML.xml", "<newsitem>", "1newsML.xml is no story"),
    ],
)
def test_damaged_files_are_named(tmp_path, name, content, message):
    if not name.endswith((".zip", ".xml")):
        write_tokens(tmp_path, drawn(20))
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=message):
        build(tmp_path, tmp_path / "out.npz", terms=TERMS)
    assert not (tmp_path / "out.npz").exists()
