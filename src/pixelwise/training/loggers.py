"""Other places where metrics can go: tensorboard, wandb, mlflow, each behind its extra."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from pixelwise.errors import MissingExtraError
from pixelwise.spec import Recipe
from pixelwise.training.recipe import dump


class Logger(Protocol):
    """Takes the same rows as metrics.csv."""

    def log(self, row: dict[str, float | int]) -> None: ...  # noqa: D102

    def close(self) -> None: ...  # noqa: D102


def open_loggers(recipe: Recipe, out: Path) -> list[Logger]:
    """The loggers that a recipe asks for.

    Args:
        recipe: its log section says which.
        out:    the run folder; its name becomes the run's.

    Raises:
        MissingExtraError: a logger's package is not installed.
    """
    makers = {"tensorboard": Tensorboard, "wandb": Wandb, "mlflow": Mlflow}
    return [make(recipe, out) for name, make in makers.items() if getattr(recipe.log, name)]


class Tensorboard:
    """Writes event files into the run folder."""

    def __init__(self, recipe: Recipe, out: Path) -> None:
        _need("tensorboard", "tensorboard")
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(str(out / "tensorboard"))
        self._writer.add_text("recipe", f"```yaml\n{dump(recipe)}```")

    def log(self, row: dict[str, float | int]) -> None:
        """One scalar per column."""
        for name, value in row.items():
            if name not in ("step", "epoch"):
                self._writer.add_scalar(name, value, int(row["step"]))

    def close(self) -> None:
        """Write what is buffered."""
        self._writer.close()


class Wandb:
    """Sends rows to Weights & Biases, under the user's own settings (also offline)."""

    def __init__(self, recipe: Recipe, out: Path) -> None:
        wandb = _need("wandb", "wandb")
        config = recipe.model_dump(mode="json")
        self._run: Any = wandb.init(project="pixelwise", name=out.name, dir=out, config=config)

    def log(self, row: dict[str, float | int]) -> None:
        """One call per row, at its step."""
        self._run.log(dict(row), step=int(row["step"]))

    def close(self) -> None:
        """Finish the run."""
        self._run.finish()


class Mlflow:
    """Sends rows to MLflow, to wherever the user's tracking URI points."""

    def __init__(self, recipe: Recipe, out: Path) -> None:
        self._mlflow: Any = _need("mlflow", "mlflow")
        self._mlflow.start_run(run_name=out.name)
        self._mlflow.log_text(dump(recipe), "config.yaml")

    def log(self, row: dict[str, float | int]) -> None:
        """One call per row, at its step.

        Names have dots for slashes ("train.loss.pixel"): MLflow's file store makes folders of
        slashes, and "train/loss" cannot be both a file and a folder.
        """
        values = {name.replace("/", "."): float(v) for name, v in row.items() if name != "step"}
        self._mlflow.log_metrics(values, step=int(row["step"]))

    def close(self) -> None:
        """Finish the run."""
        self._mlflow.end_run()


def _need(module: str, extra: str) -> Any:
    try:
        return import_module(module)
    except ImportError:
        raise MissingExtraError(f"log.{module}", extra) from None
