"""A run that was stopped, however rudely, ends with the same bits as one that was not."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pixelwise import checkpoint
from pixelwise.errors import ModelError, UsageError
from pixelwise.train import resume, run_recipe
from pixelwise.training import recipe as recipes
from pixelwise.training.interruption import TrainingInterrupted
from tests.training_stand_ins import Tiny, add_tiny_system, make_squares, recipe_tree

# Dropout, an average, momentum, warm-up and workers: everything that has a memory.
RECIPE = {
    "model": {"dropout": 0.3},
    "data": {"batch_size": 2, "workers": 0, "flip": 0.5, "scale": [0.7, 1.3], "color": 0.3},
    "optim": {"ema_decay": 0.9, "schedule": "constant", "warmup_steps": 3},
    "run": {"epochs": 4, "save_every_steps": 3},
    "log": {"every_steps": 3, "pictures": 0},
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_squares(tmp_path_factory.mktemp("squares"), train=11)


@pytest.fixture(autouse=True)
def _tiny(monkeypatch):
    add_tiny_system()
    monkeypatch.setattr(Tiny, "at_call", {})


def recipe_of(data, out, **changes):
    tree = recipe_tree(data, out, **RECIPE)
    return recipes.validate(recipes.merge(tree, recipes.nest(changes)))


@pytest.fixture(scope="module")
def straight(data, tmp_path_factory):
    """Four epochs of five steps without a stop."""
    add_tiny_system()
    out = tmp_path_factory.mktemp("straight") / "run"
    return run_recipe(recipe_of(data, out), quiet=True)


def tensors(value):
    """All tensors and numbers of a nested value, by path."""
    if isinstance(value, torch.Tensor):
        return {"": value}
    if isinstance(value, dict | list | tuple):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        return {f"{k}.{p}": v for k, x in items for p, v in tensors(x).items()}
    return {"": torch.tensor(value)} if isinstance(value, int | float) else {}


def assert_same_run(resumed: Path, straight: Path):
    for name in ("best", "last"):
        a, b = (checkpoint.load(p / f"weights/{name}.safetensors") for p in (resumed, straight))
        assert a.metrics == b.metrics
        for key, value in b.system.state_dict().items():
            assert torch.equal(a.system.state_dict()[key], value), (name, key)
    a, b = (torch.load(p / "state/last.pt", weights_only=True) for p in (resumed, straight))
    del a["position"]["elapsed_s"], b["position"]["elapsed_s"]
    a, b = tensors(a), tensors(b)
    assert a.keys() == b.keys()
    different = [k for k in a if not torch.equal(a[k], b[k])]
    assert not different, "optimiser, average, generators, position"
    rows = [
        [
            {k: v for k, v in json.loads(line).items() if k in ("step", "epoch", "lr") or "/" in k}
            for line in (p / "metrics.jsonl").read_text().splitlines()
        ]
        for p in (resumed, straight)
    ]
    assert rows[0] == rows[1]


def test_two_and_two_epochs_are_four(data, straight, tmp_path):
    run_recipe(recipe_of(data, tmp_path / "run", **{"run.epochs": 2}), quiet=True)
    resumed = resume(tmp_path / "run", ["run.epochs=4"], quiet=True)
    assert resumed.steps == 20
    assert_same_run(resumed.out, straight.out)


@pytest.mark.parametrize("call", [2, 5, 8])
def test_interrupted_anywhere(data, straight, tmp_path, monkeypatch, call):
    """Before any evaluation, at the end of an epoch, in the middle of the second."""
    stop = {call: lambda: signal.raise_signal(signal.SIGTERM)}
    monkeypatch.setattr(Tiny, "at_call", stop)
    with pytest.raises(TrainingInterrupted):
        run_recipe(recipe_of(data, tmp_path / "run"), quiet=True)
    monkeypatch.setattr(Tiny, "at_call", {})
    assert_same_run(resume(tmp_path / "run", quiet=True).out, straight.out)


def test_interrupted_during_an_evaluation(data, straight, tmp_path, monkeypatch):
    real, calls = Tiny.decode, []

    def decode(self, raw, sizes):
        calls.append(1)
        if len(calls) == 2:
            signal.raise_signal(signal.SIGINT)
            pytest.fail("an evaluation stops at once")
        return real(self, raw, sizes)

    monkeypatch.setattr(Tiny, "decode", decode)
    with pytest.raises(TrainingInterrupted, match="step 5"):
        run_recipe(recipe_of(data, tmp_path / "run"), quiet=True)
    assert_same_run(resume(tmp_path / "run", quiet=True).out, straight.out)


KILLED = """
import os, signal, sys
from pixelwise.training import recipe
from pixelwise.train import run_recipe
from tests.training_stand_ins import Tiny, add_tiny_system
add_tiny_system()
Tiny.at_call = {9: lambda: os.kill(os.getpid(), signal.SIGKILL)}
run_recipe(recipe.read(sys.argv[1]), quiet=True)
"""


def test_killed_in_the_middle_of_an_epoch(data, straight, tmp_path):
    """kill -9 in step 9; the state is of step 6, rows and weights may be newer."""
    path = tmp_path / "recipe.yaml"
    path.write_text(recipes.dump(recipe_of(data, tmp_path / "run")))
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(path)],
        cwd=Path(__file__).parents[1], env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False,
    )  # fmt: skip
    assert done.returncode == -signal.SIGKILL
    state = torch.load(tmp_path / "run/state/last.pt", weights_only=True)
    assert state["position"]["step"] == 6
    (tmp_path / "run/state/.last.pt.1.part").write_bytes(b"half a state")
    with (tmp_path / "run/metrics.jsonl").open("a") as file:
        file.write('{"step": 8, "train/l')  # a row cut off by the kill
    assert_same_run(resume(tmp_path / "run", quiet=True).out, straight.out)


def test_reading_processes_change_nothing(data, straight, tmp_path):
    recipe = recipe_of(data, tmp_path / "run", **{"data.workers": 2, "run.epochs": 2})
    run_recipe(recipe, quiet=True)
    resumed = resume(tmp_path / "run", ["run.epochs=4", "data.workers=0"], quiet=True)
    assert_same_run(resumed.out, straight.out)


def test_a_finished_run_resumes_to_itself(straight):
    before = (straight.out / "weights/last.safetensors").read_bytes()
    again = resume(straight.out, quiet=True)
    assert again.metrics == straight.metrics
    assert (straight.out / "weights/last.safetensors").read_bytes() == before


def damaged(path):
    path.write_bytes(path.read_bytes()[:1000])


def other_model(path):
    state = torch.load(path, weights_only=True)
    state["system"] = {"something": torch.zeros(1)}
    torch.save(state, path)


def pickled_code(path):
    torch.save({"version": 1, "position": Path("x")}, path)


STATES = [(damaged, "cannot be read"), (other_model, "another model"), (pickled_code, "cannot be")]


@pytest.mark.parametrize(("damage", "message"), STATES, ids=[d.__name__ for d, _ in STATES])
def test_states_that_cannot_be_used(data, tmp_path, damage, message):
    run_recipe(recipe_of(data, tmp_path / "run", **{"run.epochs": 1}), quiet=True)
    damage(tmp_path / "run/state/last.pt")
    with pytest.raises(ModelError, match=message):
        resume(tmp_path / "run", quiet=True)
    (tmp_path / "run/state/last.pt").unlink()
    with pytest.raises(ModelError, match="no state to resume from"):
        resume(tmp_path / "run", quiet=True)


def test_resume_refuses_wrong_overrides(straight):
    with pytest.raises(UsageError, match="did you mean 'lr'"):
        resume(straight.out, ["optim.lrr=3"], quiet=True)
