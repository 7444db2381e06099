"""What W&B wrote of a run, read back from its own file: the records that it sends, or would send."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BLOCK = 32768  # bytes; a record does not cross from one to the next, but goes on in a further part


def _parts(path: Path) -> Iterator[bytes]:
    """Return the records of a log in LevelDB's format, as far as it was written."""
    content = path.read_bytes()
    assert content[:4] == b":W&B", path
    at, record = 7, b""
    while at + 7 <= len(content):
        if BLOCK - at % BLOCK < 7:  # no room for a head: zeros
            at += BLOCK - at % BLOCK
            continue
        length, kind = int.from_bytes(content[at + 4 : at + 6], "little"), content[at + 6]
        record += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield record
            record = b""


class Recorded:
    """One process of a run.

    Attributes:
        run: its description: group, job type, name, tags.
        config: as it was sent.
        history: rows by their step.
        artifacts: that were logged.
        exit_code: None where it was killed.
    """

    def __init__(self, path: Path) -> None:
        from wandb.proto import wandb_internal_pb2

        self.config: dict[str, Any] = {}
        self.history: dict[int, dict[str, Any]] = {}
        self.artifacts: list[Any] = []
        self.exit_code: int | None = None
        for part in _parts(path):
            record = wandb_internal_pb2.Record.FromString(part)
            kind = record.WhichOneof("record_type")
            if kind == "run":
                self.run = record.run
                self.config = {u.key: json.loads(u.value_json) for u in record.run.config.update}
            elif kind == "history":
                row = {"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in record.history.item}
                step = int(row["_step"])
                assert step not in self.history, step
                self.history[step] = row
            elif kind == "artifact":
                self.artifacts.append(record.artifact)
            elif kind == "exit":
                self.exit_code = record.exit.exit_code


def recorded(folder: Path) -> list[Recorded]:
    """Return what was written of a run in W&B's folder, a process each, in their order."""
    import wandb

    wandb.teardown()  # it ends with a run's last record written, and a file that is closed later
    return [Recorded(path) for path in sorted(folder.glob("*run-*/run-*.wandb"))]
