"""Training on the GPU through the public interface: it learns, repeats itself, and resumes."""

import json

import pytest
import torch

import pixelwise as pw
from pixelwise import checkpoint
from pixelwise.cli import run as run_cli
from pixelwise.train import resume, run_recipe
from pixelwise.training import recipe as recipes
from tests.data.made_up import annotation, coco_content, square, write_coco
from tests.gpu.device import DEVICE, GPU, assert_near, needs_compiler
from tests.systems.test_contract import TINY
from tests.training_stand_ins import Tiny, add_tiny_system, make_squares, recipe_tree

pytestmark = GPU

PLACE = {"device": DEVICE.type}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_squares(tmp_path_factory.mktemp("squares"), train=11)


@pytest.fixture(autouse=True)
def _tiny(monkeypatch):
    add_tiny_system()
    monkeypatch.setattr(Tiny, "at_call", {})


def train(data, out, /, **sections):
    run = {**PLACE, **sections.pop("run", {})}
    return run_recipe(recipes.validate(recipe_tree(data, out, run=run, **sections)), quiet=True)


def rows_of(run):
    return [json.loads(x) for x in (run.out / "metrics.jsonl").read_text().splitlines()]


def losses_of(run):
    return [row["train/loss"] for row in rows_of(run) if "train/loss" in row]


def weights(path):
    return checkpoint.load(path).system.state_dict()


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_it_learns(data, tmp_path, precision):
    if DEVICE.type == "cpu" and precision == "fp16":
        pytest.skip("fp16 is for GPUs")
    about = {"epochs": 20, "precision": precision, "channels_last": True}
    every = {"ema_decay": 0.9, "accumulate": 2, "grad_clip": 5.0}
    run = train(data, tmp_path / "run", run=about, optim=every, eval={"every_epochs": 10})
    losses = losses_of(run)
    assert losses[-1] < 0.5 * losses[0], losses
    assert run.metrics["miou"] > 0.6
    state = torch.load(run.out / "state/last.pt", map_location="cpu", weights_only=True)
    assert (state["scaler"] is not None) == (precision == "fp16")
    assert all(v.dtype == torch.float32 for v in weights(run.last).values())
    log = (run.out / "log.txt").read_text()
    assert f", {DEVICE.type}" in log, "the headline says where"
    assert f", {precision}" in log


def test_the_first_steps_are_the_cpus(data, tmp_path):
    """The same weights and pictures; only rounding differs, and grows slowly."""
    keys = {"optim": {"name": "sgd"}, "model": {"class_weights": [0.5, 2.0, 1.0]}}
    here = train(data, tmp_path / "cpu", run={"device": "cpu"}, **keys)
    there = train(data, tmp_path / "gpu", **keys)
    assert_near(losses_of(there), losses_of(here), tol=1e-4, what="losses")
    assert_near(weights(there.last), weights(here.last), tol=1e-3, what="weights")


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_two_and_two_epochs_are_four(data, tmp_path, precision):
    """Dropout on the GPU, momentum, average and scaler go on where they stood, bit by bit."""
    if DEVICE.type == "cpu" and precision == "fp16":
        pytest.skip("fp16 is for GPUs")
    recipe = {
        "model": {"dropout": 0.3},
        "data": {"batch_size": 2, "flip": 0.5, "scale": [0.7, 1.3]},
        "optim": {"ema_decay": 0.9, "warmup_steps": 3},
        "log": {"every_steps": 3, "pictures": 0},
    }
    about = {"precision": precision, "deterministic": True}
    try:
        straight = train(data, tmp_path / "straight", run={**about, "epochs": 4}, **recipe)
        train(data, tmp_path / "run", run={**about, "epochs": 2}, **recipe)
        resumed = resume(tmp_path / "run", ["run.epochs=4"], quiet=True)
    finally:
        torch.use_deterministic_algorithms(False)
    assert resumed.steps == straight.steps == 20
    one, other = (
        torch.load(run.out / "state/last.pt", map_location="cpu", weights_only=True)
        for run in (resumed, straight)
    )
    for part in ("generators", "scaler"):
        assert_near(one[part], other[part], tol=0, what=part)
    for part in ("system", "optimizer", "average"):
        assert_near(one[part], other[part], tol=0, what=part)
    assert_near(losses_of(resumed), losses_of(straight), tol=0, what="losses")


@needs_compiler
def test_compiled_steps_are_the_same(data, tmp_path):
    keys = {"eval": {"every_steps": 99}, "log": {"pictures": 0, "every_steps": 1}}
    plain = train(data, tmp_path / "plain", **keys)
    compiled = train(data, tmp_path / "compiled", run={"compile": True}, **keys)
    assert_near(losses_of(compiled), losses_of(plain), tol=1e-3, what="losses")


def test_workers_read_ahead_into_pinned_memory(data, tmp_path):
    own = train(data, tmp_path / "own", log={"pictures": 0})
    others = train(data, tmp_path / "others", log={"pictures": 0}, data={"workers": 2})
    assert_near(losses_of(others), losses_of(own), tol=1e-4, what="losses")


@pytest.fixture(scope="module")
def objects(tmp_path_factory):
    """Six pictures with a few squares of two classes each, in COCO's form."""
    folder = tmp_path_factory.mktemp("objects")
    content = coco_content(images=6, size=(64, 64))
    content["annotations"] = [
        annotation(1 + 2 * i + k, 10 + i, (7, 3)[k], square(4 + 5 * i, 6 + 26 * k, 16 + 2 * i))
        for i in range(6)
        for k in range(2)
    ]
    return write_coco(folder, content)


SYSTEMS = {
    "mask_rcnn": "MaskRCNN",
    "rfcn": "RFCN",
    "solov2": "SOLO",
    "yolact": "YOLACT",
    "polarmask": "PolarMask",
    "embedding": "Embedding",
    "deeplabv3plus": "DeepLabV3Plus",
}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", SYSTEMS)
def test_systems_train_and_are_evaluated(objects, tmp_path, name, precision):
    """A whole run each: loss falls, the best weights predict and are measured on the device."""
    tiny = {k: v for k, v in TINY[SYSTEMS[name]].items() if k != "num_classes"}
    run = pw.train(
        {"name": name, **tiny},
        data={"source": str(objects), "val": "train", "batch_size": 3, "workers": 0,
              "resize": {"fixed": [64, 64]}},
        optim={"name": "adamw", "lr": 2e-3, "schedule": "constant"},
        run={**PLACE, "precision": precision}, log={"every_steps": 1, "pictures": 1},
        eval={"every_steps": 16}, steps=16, out=tmp_path / "run", quiet=True,
    )  # fmt: skip
    losses = losses_of(run)
    assert sum(losses[-4:]) < 0.95 * sum(losses[:4]), losses
    found = pw.evaluate(run.best, str(objects), device=DEVICE.type, quiet=True)
    for metric, value in found.metrics.items():
        assert value == pytest.approx(run.metrics[metric], abs=1e-3, nan_ok=True), metric


def test_from_the_command_line(data, tmp_path, capsys):
    path = tmp_path / "recipe.yaml"
    tree = recipe_tree(data, tmp_path / "run", run=PLACE)
    path.write_text(json.dumps(tree))  # JSON is YAML
    assert run_cli(["train", str(path), "--json", "--quiet"]) == 0
    best = json.loads(capsys.readouterr().out)["best"]
    assert run_cli(["val", best, str(data), "--device", DEVICE.type, "--json"]) == 0
    on_device = json.loads(capsys.readouterr().out)["metrics"]
    assert run_cli(["val", best, str(data), "--device", "cpu", "--json"]) == 0
    on_cpu = json.loads(capsys.readouterr().out)["metrics"]
    assert on_device["miou"] == pytest.approx(on_cpu["miou"], abs=2e-3)
    for precision in ("bf16", "fp16"):
        words = ["--device", DEVICE.type, "--precision", precision, "--json"]
        assert run_cli(["val", best, str(data), *words]) == 0
        half = json.loads(capsys.readouterr().out)["metrics"]
        assert half["miou"] == pytest.approx(on_cpu["miou"], abs=0.05), precision
