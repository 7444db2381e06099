"""Out of memory is told in words that say what to lower."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from scarcely import stages, worker
from scarcely.cli import main
from scarcely.errors import UserError
from scarcely.memory import OutOfMemory, told
from scarcely.methods.rotnet import RotNet
from scarcely.run import _of_stage
from tests.runs import TINY, compose, data_of, job_of, start_ranks

TOO_MUCH = 1 << 50  # bytes: no machine has a pebibyte


class Greedy(RotNet):
    """Asks for more memory than there is in its second step."""

    def training_step(self, batch, batch_idx):
        if batch_idx == 1:
            torch.empty(TOO_MUCH, dtype=torch.uint8)
        return super().training_step(batch, batch_idx)


@pytest.mark.parametrize(
    "ask", [lambda: torch.empty(TOO_MUCH, dtype=torch.uint8), lambda: np.zeros(TOO_MUCH)]
)
def test_the_memory_of_the_machine_is_named_and_what_needs_less(ask):
    with pytest.raises(OutOfMemory) as error, told("much", where="size", instead="size=1"):
        ask()
    assert (error.value.what, error.value.where) == ("out of memory of the machine: much", "size")


def test_other_errors_are_left_as_they_are():
    with pytest.raises(RuntimeError, match="shapes"), told("much", where="size", instead="size=1"):
        torch.ones(2) @ torch.ones(3, 4)


def greedy(**changes):
    config = compose("method=rotnet", "epochs=1")
    data = data_of(config)
    method = config["plan"][-1]["method"] | {"_target_": f"{__name__}.Greedy"}
    return job_of(config, data, method=method, **changes), data


def test_a_stage_says_its_batch_and_half_of_it(tmp_path):
    job, data = greedy()
    with pytest.raises(OutOfMemory) as error:
        stages.run_stage(job, tmp_path, data, "cpu", "key", [])
    assert "256 samples" in error.value.what
    assert "batch_size=128" in error.value.instead


def test_the_ranks_of_a_stage_say_so_too(tmp_path):
    job, _ = greedy()
    ranks = start_ranks(replace(job, trainer={**job.trainer, "devices": 2}), tmp_path)
    assert 2 in [rank.wait() for rank in ranks]
    with pytest.raises(Exception, match="128 samples in 1 view") as error:
        worker.raise_error(tmp_path, 2, "rotnet")
    assert "batch_size=128" in error.value.instead


def test_a_command_names_the_setting_of_the_stage_and_ends_with_2(tmp_path, capsys):
    given = [
        *TINY,
        "pretext=rotnet",
        f"++stages.pretext._target_={__name__}.Greedy",
        "stages.pretext.epochs=1",
    ]
    folders = [f"run_dir={tmp_path / 'run'}", f"cache_dir={tmp_path / 'cache'}"]
    assert main([*given, *folders]) == 2
    printed = capsys.readouterr().err
    assert "out of memory of the machine" in printed
    assert "stages.pretext.batch_size=" in printed
    assert "Traceback" not in printed


def test_settings_of_an_earlier_stage_get_its_name_and_paths_stay():
    path = "/runs/batch_size=3/epochs/method.x/run-epochs"
    told = _of_stage("pretext", UserError("too much", where=f"batch_size, method.optimizer.lr: {path}"))
    assert told.where == f"stages.pretext.batch_size, stages.pretext.optimizer.lr: {path}"
