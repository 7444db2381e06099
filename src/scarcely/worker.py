"""One rank of a stage: ``python -m scarcely.worker FOLDER``, started by `scarcely.stages.launch`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

JOB_FILE = "job.json"
ERROR_FILE = "error.json"


def main(folder: Path) -> int:
    """Train this rank's share of the stage that the folder describes; return the exit code."""
    from hydra.utils import instantiate

    from scarcely.errors import UserError
    from scarcely.stages import Job, train

    content = json.loads((folder / JOB_FILE).read_text())
    job = Job(**content["job"])
    try:
        data = instantiate(job.data, _convert_="all")
        data.setup()
        train(job, folder, data, content["accelerator"], content["earlier"])
    except UserError as error:
        (folder / ERROR_FILE).write_text(
            json.dumps({"what": error.what, "where": error.where, "instead": error.instead})
        )
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
