"""Loggers against the real packages: what a run writes, read back with their own readers."""

import json

import pytest

from pixelwise.train import run_recipe
from pixelwise.training import recipe as recipes
from tests.training_stand_ins import add_tiny_system, make_squares, recipe_tree


def need(module: str, extra: str):
    reason = f"{module} is not installed; pip install 'pixelwise[{extra}]'"
    return pytest.importorskip(module, reason=reason)


@pytest.fixture
def trained(tmp_path):
    """Train the stand-in for two epochs with a logger on; the rows of metrics.jsonl and the run."""
    add_tiny_system()
    data = make_squares(tmp_path / "squares")

    def train(logger: str):
        tree = recipe_tree(data, tmp_path / "run", log={logger: True})
        run = run_recipe(recipes.validate(tree), quiet=True)
        rows = [json.loads(x) for x in (run.out / "metrics.jsonl").read_text().splitlines()]
        return rows, run

    return train


def losses_by_step(rows) -> dict[int, float]:
    return {row["step"]: row["train/loss"] for row in rows if "train/loss" in row}


def test_tensorboard_holds_every_loss(trained) -> None:
    need("tensorboard", "tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    rows, run = trained("tensorboard")
    events = EventAccumulator(str(run.out / "tensorboard"))
    events.Reload()
    found = {event.step: event.value for event in events.Scalars("train/loss")}
    assert found == pytest.approx(losses_by_step(rows), rel=1e-6)
    assert found
    assert any("recipe" in tag for tag in events.Tags()["tensors"])


def test_mlflow_holds_every_loss(trained, tmp_path, monkeypatch) -> None:
    mlflow = need("mlflow", "mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # newer ones prefer a data base
    mlflow.set_tracking_uri((tmp_path / "mlruns").as_uri())
    rows, _ = trained("mlflow")
    client = mlflow.MlflowClient()
    (found,) = client.search_runs(["0"])
    assert found.info.run_name == "run"
    assert found.info.status == "FINISHED"
    history = {m.step: m.value for m in client.get_metric_history(found.info.run_id, "train.loss")}
    assert history == pytest.approx(losses_by_step(rows))
    assert history


def test_wandb_offline_run_is_written(trained, monkeypatch) -> None:
    need("wandb", "wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    rows, run = trained("wandb")
    (log,) = run.out.glob("wandb/offline-run-*/run-*.wandb")
    assert losses_by_step(rows)
    assert b"pixelwise" in log.read_bytes()
