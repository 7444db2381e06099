"""The record of an epoch says what happened in it."""

import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.precision import MixedPrecision

from scarcely import stages
from scarcely.callbacks.history import History, read_rows
from scarcely.methods.base import Place
from tests.runs import compose, data_of, job_of


def test_a_step_whose_scaled_gradients_overflow_is_left_out_and_the_scale_recorded(tmp_path):
    config = compose("method=supervised", "method.optimizer.lr=0.01")
    data = data_of(config)
    job = job_of(config, data)
    method = stages.build_method(job, data.input_shape)
    method.place = Place(job.seed, job.name, 12, 0, 1, job.protocol, scaled=True)
    before = {name: p.detach().clone() for name, p in method.named_parameters()}
    loader = stages.training_loader(job, method, data)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**60, growth_interval=1000)
    trainer = pl.Trainer(
        max_epochs=12,
        accelerator="cpu",
        plugins=[MixedPrecision("16-mixed", "cpu", scaler=scaler)],
        callbacks=[History(tmp_path / "metrics.csv", "stage")],
        limit_train_batches=4,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(method, loader)
    scales = [row["loss_scale"] for row in read_rows(tmp_path / "metrics.csv")]
    assert scales[0] == 2.0**56, "every step of the first epoch overflows, and halves it"
    assert scales[-1] == scales[-2] < 2.0**20, "then none does"
    assert all(p.isfinite().all() for p in method.parameters())
    assert any(not torch.equal(p, before[name]) for name, p in method.named_parameters())


def test_without_a_scale_there_is_none_in_the_record(tmp_path):
    job = job_of(config := compose("method=supervised", "epochs=1"), data := data_of(config))
    stages.train(job, tmp_path, data, "cpu", batches=1)
    assert "loss_scale" not in read_rows(tmp_path / "metrics.csv")[0]
