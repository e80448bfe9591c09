"""`pixelwise train` as a user types it."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pixelwise import checkpoint
from pixelwise.cli import run
from tests.training_stand_ins import Tiny, add_tiny_system, make_squares

RECIPE = """
model: {name: tiny}
data: {source: SOURCE, batch_size: 4, workers: 0, scale: [1.0, 1.0]}
optim: {name: adamw, lr: 0.01, schedule: constant}
run: {epochs: 2, device: cpu}
log: {pictures: 1}
out: OUT
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_squares(tmp_path_factory.mktemp("squares"))


@pytest.fixture
def recipe(data, tmp_path, monkeypatch):
    add_tiny_system()
    monkeypatch.setattr(Tiny, "at_call", {})
    path = tmp_path / "recipe.yaml"
    text = RECIPE.replace("SOURCE", str(data)).replace("OUT", str(tmp_path / "run"))
    path.write_text(text)
    return path


def test_train_with_overrides(recipe, tmp_path, capsys):
    out = tmp_path / "elsewhere"
    assert run(["train", str(recipe), "run.epochs=1", "optim.lr=1e-3", "--out", str(out)]) == 0
    shown = capsys.readouterr()
    assert "epoch 1, step 2: miou" in shown.err
    assert "weights/best.safetensors" in shown.out
    assert "miou" in shown.out
    assert "lr: 0.001" in (out / "config.yaml").read_text()


def test_json_is_one_document_on_stdout(recipe, capsys):
    assert run(["train", str(recipe), "--json", "--quiet"]) == 0
    shown = capsys.readouterr()
    document = json.loads(shown.out)
    assert shown.err == ""
    assert document["steps"] == 4
    assert Path(document["best"]).exists()
    assert document["metrics"]["miou"] > 0


def test_dry_run(recipe, tmp_path, capsys):
    assert run(["train", str(recipe), "--dry-run", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["memory_mb"]["activations"] > 0
    assert not (tmp_path / "run").exists()


def test_interrupt_then_resume(recipe, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(Tiny, "at_call", {3: lambda: signal.raise_signal(signal.SIGINT)})
    assert run(["train", str(recipe), "--quiet"]) == 130
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.endswith(f"pixelwise train --resume {tmp_path / 'run'}")
    words = line.partition("pixelwise ")[2].split()
    monkeypatch.setattr(Tiny, "at_call", {})
    assert run([*words, "--quiet", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["steps"] == 4
    assert run([*words, "run.epochs=3", "--quiet", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["steps"] == 6


WRONG = [
    (["optim.lrr=0.1"], 2, ["optim.lrr", "did you mean 'lr'"]),
    (["optim.lr=fast"], 2, ["optim.lr", "'fast'", "number"]),
    (["model.widht=3"], 2, ["model.widht", "did you mean 'width'"]),
    (["optim.lr"], 2, ["'optim.lr'", "key=value", "optim.lr=0.01"]),
    (["data.source=nowhere"], 3, ["nowhere"]),
    (["data.val=tset"], 3, ["tset"]),
    (["model.weights=SELF"], 4, ["recipe.yaml", "not a pixelwise checkpoint"]),
    (["model.weights=none.safetensors"], 4, ["none.safetensors", "no such checkpoint"]),
    (["log.mlflow=true"], 5, ["pixelwise[mlflow]"]),
    (["out=SELF/run"], 1, ["recipe.yaml"]),
    (["out=/proc/run"], 1, ["/proc/run"]),
]


@pytest.mark.parametrize(("words", "code", "parts"), WRONG, ids=[w[0][0] for w in WRONG])
def test_wrong_input_has_its_code_and_one_message(recipe, capsys, words, code, parts):
    words = [w.replace("SELF", str(recipe)) for w in words]
    assert run(["train", str(recipe), *words, "--quiet"]) == code
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert "Traceback" not in message
    assert len(message.splitlines()) <= 3
    for part in parts:
        assert part in message


def test_no_recipe_and_unknown_recipe(capsys):
    assert run(["train"]) == 2
    assert "name a recipe" in capsys.readouterr().err
    assert run(["train", "camvid_deeplabv3"]) == 2
    assert "did you mean camvid_deeplabv3plus" in capsys.readouterr().err
    assert run(["train", "--resume", "nowhere"]) == 2
    assert "no run to resume" in capsys.readouterr().err


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_full_disk(recipe, tmp_path, capsys):
    """log.txt leads to a full device: one message that names it."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run/log.txt").symlink_to("/dev/full")
    assert run(["train", str(recipe), "--quiet"]) == 1
    message = capsys.readouterr().err
    assert "disk is full" in message
    assert "log.txt" in message


END_TO_END = """
model:
  name: deeplabv3plus
  backbone: resnet18
  aspp_width: 16
  decoder_width: 16
  low_level_width: 8
data: {source: SOURCE, batch_size: 2, workers: 0, crop: [32, 32], limit: 4}
optim: {lr: 0.05, warmup_steps: 2}
run: {steps: 4, device: cpu}
eval: {every_steps: 2}
log: {pictures: 2}
out: OUT
"""


def test_a_real_system_end_to_end(tmp_path):
    """The command itself, in its own process, with a system of the table."""
    data = make_squares(tmp_path / "data", size=40, train=4, val=2)
    recipe = tmp_path / "recipe.yaml"
    text = END_TO_END.replace("SOURCE", str(data)).replace("OUT", str(tmp_path / "run"))
    recipe.write_text(text)
    command = [sys.executable, "-c", "from pixelwise.cli import main; main()"]
    done = subprocess.run(
        [*command, "train", str(recipe), "--json"],
        capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["steps"] == 4
    loaded = checkpoint.load(tmp_path / "run/weights/best.safetensors")
    assert loaded.name == "deeplabv3plus"
    assert loaded.system.cfg.num_classes == 3
    assert (tmp_path / "run/report.html").stat().st_size > 1000
    assert len(list((tmp_path / "run/pictures").glob("epoch_*.jpg"))) == 4
