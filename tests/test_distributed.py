"""Two processes on the CPU do what one does with the same total batch."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import pixelwise as pw
from pixelwise import checkpoint
from pixelwise.train import resume, run_recipe
from pixelwise.training import recipe as recipes
from tests.training_stand_ins import add_tiny_system, make_squares, recipe_tree

SCRIPT = """
import sys
from tests.training_stand_ins import add_tiny_system
add_tiny_system()
from pixelwise.cli.train import command
sys.exit(command(sys.argv[1], sys.argv[2:], quiet=True))
"""


def launch(script, *words):
    """Run a script in two processes by torchrun."""
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone",
        str(script), *map(str, words),
    ]  # fmt: skip
    root = Path(__file__).parents[1]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)}
    return subprocess.run(
        command, cwd=root, env=env, capture_output=True, text=True, timeout=300, check=False
    )


def rows_of(out):
    return [json.loads(x) for x in (out / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path):
    """The squares have ignored strips, so the parts differ in weight; 3 validation pictures."""
    add_tiny_system()
    data = make_squares(tmp_path / "squares", train=9)
    tree = recipe_tree(
        data, tmp_path / "alone", optim={"accumulate": 2, "grad_clip": 0.5, "ema_decay": 0.9},
        data={"flip": 0.5, "scale": [0.7, 1.3]},
    )  # fmt: skip
    run_recipe(recipes.validate(tree), quiet=True)
    recipe, script = tmp_path / "recipe.yaml", tmp_path / "script.py"
    recipe.write_text(recipes.dump(recipes.validate(tree)))
    script.write_text(SCRIPT)
    done = launch(script, recipe, f"out={tmp_path / 'pair'}", "optim.accumulate=1")
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("weights/best.safetensors") == 1, "the first process speaks for all"

    alone, pair = rows_of(tmp_path / "alone"), rows_of(tmp_path / "pair")
    assert len(alone) == len(pair)
    for a, b in zip(alone, pair, strict=True):
        for key in a:
            if key.startswith("train/") or "loss" in key:
                assert a[key] == pytest.approx(b[key], rel=1e-5), key
            elif key.startswith("val/"):
                assert a[key] == pytest.approx(b[key], abs=2e-3), key
    one, two = (
        checkpoint.load(tmp_path / name / "weights/last.safetensors").system.state_dict()
        for name in ("alone", "pair")
    )
    for name, value in one.items():
        torch.testing.assert_close(value, two[name], rtol=0, atol=1e-4, msg=name)

    # The evaluation of a pair counts every picture once, as the one of a single process does.
    evaluation = json.loads((tmp_path / "pair/evaluation.json").read_text())
    assert sum(map(sum, evaluation["confusion"])) == sum(
        int((s.labels != 255).sum()) for s in pw.data.open(data, split="val").as_semantic()
    )
    # A pair's state serves a single process and the other way round.
    resumed = resume(tmp_path / "pair", ["run.epochs=3", "optim.accumulate=2"], quiet=True)
    assert resumed.steps == 6
