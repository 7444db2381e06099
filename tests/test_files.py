"""Files are whole or not there, whoever reads meanwhile."""

import json
import threading

import pytest

from scarcely.errors import WriteError
from scarcely.files import write_atomically, write_json


@pytest.mark.parametrize("content", ["ä", "ä".encode(), lambda file: file.write("ä".encode())])
def test_text_bytes_and_a_writer_write_the_same(tmp_path, content):
    assert write_atomically(tmp_path / "page", content).read_bytes() == "ä".encode()


def test_a_reader_never_sees_a_part(tmp_path):
    path = write_atomically(tmp_path / "deep" / "page", b"a" * 300_000)
    stop = threading.Event()
    seen = set()

    def read():
        while not stop.is_set():
            content = path.read_bytes()
            seen.add((len(content), content[:1], content[-1:]))

    reader = threading.Thread(target=read)
    reader.start()
    for turn in range(40):
        write_atomically(path, b"ab"[turn % 2 : turn % 2 + 1] * 300_000)
    stop.set()
    reader.join()
    assert seen <= {(300_000, b"a", b"a"), (300_000, b"b", b"b")}


def test_a_failed_write_leaves_nothing_beside_the_target(tmp_path):
    (tmp_path / "page").mkdir()
    with pytest.raises(WriteError, match="could not write page"):
        write_atomically(tmp_path / "page", b"text")
    assert [path.name for path in tmp_path.iterdir()] == ["page"]


def test_json_is_read_back_and_what_it_has_no_form_for_is_text(tmp_path):
    path = write_json(tmp_path / "content.json", {"a": [1, None, 0.5], "at": tmp_path})
    assert json.loads(path.read_text()) == {"a": [1, None, 0.5], "at": str(tmp_path)}
