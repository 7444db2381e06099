"""One rank of a stage: ``python -m scarcely.worker FOLDER``, started by `scarcely.launch`."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import traceback
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scarcely.errors import UserError, WriteError
from scarcely.files import write_atomically, write_json

if TYPE_CHECKING:
    from scarcely.job import Job

JOB_FILE = "job.json"


def error_file(folder: Path, rank: int) -> Path:
    """Return where a rank writes what ended it: several may fail at once."""
    return folder / f"error-{rank}.json"


def write_job(folder: Path, job: Job, accelerator: str, earlier: list[Any]) -> None:
    """Write what each rank is to do."""
    for left in folder.glob("error-*.json"):
        left.unlink()
    content = {"job": asdict(job), "accelerator": accelerator, "earlier": earlier}
    write_json(folder / JOB_FILE, content)


def environment(rank: int, world: int, port: int) -> dict[str, str]:
    """Return the variables by which the ranks find each other."""
    return {
        "LOCAL_RANK": str(rank),
        "NODE_RANK": "0",
        "WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }


def raise_error(folder: Path, world: int, stage: str) -> None:
    """Raise what ended the ranks: one that the user can mend, if any is.

    Raises:
        UserError: a rank raised one, or the disk is too full for what it had to say.
        RuntimeError: none did; the traceback of each rank is on stderr.
    """
    files = [error_file(folder, rank) for rank in range(world)]
    errors = [json.loads(file.read_text()) for file in files if file.is_file()]
    for error in errors:
        if "what" in error:
            raise UserError(error["what"], where=error["where"], instead=error["instead"])
    for error in errors:
        print(error["traceback"], file=sys.stderr)
    if not errors:  # for want of room to say so?
        write_atomically(folder / "room", bytes(1 << 16)).unlink()
    above = "its traceback is above" if errors else "it was killed, or crashed outside of Python"
    raise RuntimeError(f"a process of stage {stage} ended with an error; {above}")


def main(folder: Path) -> int:
    """Train this rank's share of the stage that the folder describes; return the exit code."""
    rank = int(os.environ["LOCAL_RANK"])
    try:
        from hydra.utils import instantiate

        from scarcely.job import Job
        from scarcely.stages import train, within_memory

        content = json.loads((folder / JOB_FILE).read_text())
        job = Job(**content["job"])
        data = instantiate(job.data, _convert_="all")
        data.setup()
        with within_memory(job):
            train(job, folder, data, content["accelerator"], content["earlier"], rank)
    except UserError as error:
        _report(folder, rank, {"what": error.what, "where": error.where, "instead": error.instead})
        return 2
    except KeyboardInterrupt:  # SIGTERM
        return 130
    except Exception:
        # kept for the launcher to show: the rank that stumbles over another's end is no news
        _report(folder, rank, {"traceback": f"rank {rank}:\n{traceback.format_exc()}"})
        return 1
    return 0


def _report(folder: Path, rank: int, content: dict[str, Any]) -> None:
    with contextlib.suppress(WriteError):  # the launcher finds out why there is no word
        write_json(error_file(folder, rank), content)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
