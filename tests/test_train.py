"""Training, as `pw.train` and the loop below it behave, on a stand-in system."""

import csv
import json
import math
import signal

import pytest
import torch
import yaml

import pixelwise as pw
from pixelwise import checkpoint
from pixelwise.errors import DataError, MissingExtraError, ModelError, PixelwiseError, UsageError
from pixelwise.train import resume, run_recipe
from pixelwise.training import recipe as recipes
from pixelwise.training.dry_run import dry_run
from pixelwise.training.interruption import TrainingInterrupted
from pixelwise.training.prepare import prepare
from tests.data.made_up import annotation, coco_content, square, write_coco
from tests.training_stand_ins import CLASSES, Tiny, add_tiny_system, make_squares, recipe_tree


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_squares(tmp_path_factory.mktemp("squares"))


@pytest.fixture(autouse=True)
def _tiny(monkeypatch):
    add_tiny_system()
    monkeypatch.setattr(Tiny, "poison", set())
    monkeypatch.setattr(Tiny, "at_call", {})


def run(data, out, /, **sections):
    tree = recipe_tree(data, out, **sections)
    return run_recipe(recipes.validate(tree), quiet=True)


def rows_of(run):
    return [json.loads(x) for x in (run.out / "metrics.jsonl").read_text().splitlines()]


def weights(path):
    return checkpoint.load(path).system.state_dict()


def assert_same_weights(a, b, *, atol=0.0):
    assert a.keys() == b.keys()
    for name, value in a.items():
        torch.testing.assert_close(value, b[name], rtol=0, atol=atol, msg=name)


def test_the_run_folder_holds_what_is_promised(data, tmp_path):
    run_ = run(data, tmp_path / "run", log={"pictures": 2, "every_steps": 1})
    names = {str(p.relative_to(run_.out)) for p in run_.out.rglob("*") if p.is_file()}
    promised = (
        "config.yaml command.txt environment.json data.json log.txt metrics.csv metrics.jsonl "
        "evaluation.json weights/best.safetensors weights/last.safetensors state/last.pt "
        "report.html pictures/epoch_001_00.jpg pictures/epoch_002_01.jpg"
    )
    assert set(promised.split()) <= names
    rows = rows_of(run_)
    assert [r["step"] for r in rows if "train/loss" in r] == [1, 2, 3, 4]
    assert [(r["epoch"], r["step"]) for r in rows if "val/loss" in r] == [(1, 2), (2, 4)]
    assert rows[-1]["val/miou"] > 0.5
    assert rows[0]["train/loss"] == pytest.approx(rows[0]["train/loss/pixel"])
    with (run_.out / "metrics.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [float(r["train/loss"]) for r in table if r["train/loss"]] == [
        r["train/loss"] for r in rows if "train/loss" in r
    ]
    resolved = yaml.safe_load((run_.out / "config.yaml").read_text())
    assert resolved["data"]["batch_size"] == 4
    evaluation = json.loads((run_.out / "evaluation.json").read_text())
    assert evaluation["metrics"]["miou"] == pytest.approx(run_.metrics["miou"])
    loaded = checkpoint.load(run_.best)
    assert loaded.classes == tuple(CLASSES)
    assert loaded.header["recipe"]["optim"]["lr"] == 0.01
    hashes = json.loads((run_.out / "data.json").read_text())["splits"]
    assert hashes["train"]["images"] == 8
    assert len(hashes["val"]["sha256_names_sizes"]) == 64


def test_python_call_takes_sections_and_dotted_keys(data, tmp_path):
    run_ = pw.train(
        "tiny", data={"source": str(data), "batch_size": 4, "workers": 0, "crop": [16, 16]},
        steps=3, out=tmp_path / "run", quiet=True, optim={"lr": 0.02},
        **{"log.pictures": 0, "run.device": "cpu", "eval.every_steps": 2},
    )  # fmt: skip
    assert run_.steps == 3
    assert [r["step"] for r in rows_of(run_) if "val/loss" in r] == [2, 3]
    assert not list((run_.out / "pictures").iterdir())


def test_training_learns(data, tmp_path):
    run_ = run(data, tmp_path / "run", run={"epochs": 15}, eval={"every_epochs": 15})
    losses = [r["train/loss"] for r in rows_of(run_) if "train/loss" in r]
    assert losses[-1] < 0.3 * losses[0]
    assert run_.metrics["miou"] > 0.9


def test_accumulated_parts_make_the_same_step(data, tmp_path):
    """The squares carry ignored strips of several heights: parts count by their valid pixels."""
    keys = {"eval": {"every_steps": 99}, "run": {"epochs": 1, "device": "cpu"}}
    whole = run(data, tmp_path / "whole", **keys)
    parts = run(data, tmp_path / "parts", optim={"accumulate": 4}, **keys)
    assert_same_weights(weights(whole.last), weights(parts.last), atol=2e-5)
    for a, b in zip(rows_of(whole), rows_of(parts), strict=True):
        if "train/loss" in a:
            assert a["train/loss"] == pytest.approx(b["train/loss"], rel=1e-5)


def test_accumulation_with_class_weights(data, tmp_path):
    keys = {"eval": {"every_steps": 99}, "run": {"epochs": 1, "device": "cpu"}}
    balanced = {"class_weights": [0.2, 5.0, 1.0]}
    whole = run(data, tmp_path / "whole", data=balanced, **keys)
    parts = run(data, tmp_path / "parts", data=balanced, optim={"accumulate": 2}, **keys)
    assert_same_weights(weights(whole.last), weights(parts.last), atol=2e-5)


def test_class_weights_by_median_frequency(data, tmp_path):
    run_ = run(data, tmp_path / "run", data={"class_weights": "auto"})
    found = checkpoint.load(run_.last).system.cfg.class_weights
    counts, inside = [0, 0, 0], [0, 0, 0]
    for sample in pw.data.open(data, split="train").as_semantic():
        own = [(sample.labels == k).sum() for k in range(3)]
        for k in range(3):
            counts[k] += own[k]
            inside[k] += sum(own) if own[k] else 0
    freq = [c / i for c, i in zip(counts, inside, strict=True)]
    expected = [sorted(freq)[1] / f for f in freq]
    assert found == pytest.approx(expected)


def test_bf16_on_the_cpu_runs_and_keeps_fp32_weights(data, tmp_path):
    run_ = run(data, tmp_path / "run", run={"precision": "bf16"})
    assert all(v.dtype == torch.float32 for v in weights(run_.last).values())
    exact = run(data, tmp_path / "exact")
    a, b = (rows_of(r)[0]["train/loss"] for r in (run_, exact))
    assert a != b, "autocast was on"
    assert a == pytest.approx(b, rel=0.02)


def test_averaged_weights_are_saved_and_evaluated(data, tmp_path):
    plain = run(data, tmp_path / "plain")
    averaged = run(data, tmp_path / "averaged", optim={"ema_decay": 0.9})
    state = torch.load(averaged.out / "state/last.pt", weights_only=True)
    assert_same_weights(state["system"], weights(plain.last))  # the average changes no step
    assert_same_weights(state["average"]["average"], weights(averaged.last))
    assert not torch.equal(
        weights(averaged.last)["classify.weight"], state["system"]["classify.weight"]
    )


def test_switches(data, tmp_path):
    plain = run(data, tmp_path / "a")
    switched = run(
        data, tmp_path / "b", run={"channels_last": True, "deterministic": True},
        optim={"grad_clip": 1e6},
    )  # fmt: skip
    torch.use_deterministic_algorithms(False)
    assert_same_weights(weights(plain.last), weights(switched.last), atol=1e-4)


def test_grad_clip_limits_the_step(data, tmp_path):
    keys = {"run": {"steps": 1, "device": "cpu", "epochs": None}}
    sgd = {"name": "sgd", "lr": 1.0, "momentum": 0.0, "weight_decay": 0.0}
    torch.manual_seed(0)
    clipped = run(data, tmp_path / "c", optim={**sgd, "grad_clip": 0.01}, **keys)
    free = run(data, tmp_path / "f", optim={**sgd, "lr": 0.0}, **keys)  # the start
    before, after = weights(free.last), weights(clipped.last)
    moved = math.sqrt(sum(float((after[n] - before[n]).square().sum()) for n in before))
    assert moved == pytest.approx(0.01, rel=1e-3)


def test_early_stop_and_best_of_any_metric(data, tmp_path):
    run_ = run(
        data, tmp_path / "run", optim={"lr": 0.0}, run={"epochs": 9},
        eval={"early_stop": 2, "best": "val/loss"},
    )  # fmt: skip
    evaluated = [r["epoch"] for r in rows_of(run_) if "val/loss" in r]
    assert evaluated == [1, 2, 3], "the first is the best, then patience for two"


def test_best_is_the_lowest_loss(data, tmp_path):
    run_ = run(data, tmp_path / "run", eval={"best": "loss"}, run={"epochs": 3})
    losses = [r["val/loss"] for r in rows_of(run_) if "val/loss" in r]
    assert run_.metrics["loss"] == pytest.approx(min(losses))


def test_unknown_best_metric(data, tmp_path):
    with pytest.raises(UsageError, match=r"eval.best = 'mio' is not measured; choose one of miou"):
        run(data, tmp_path / "run", eval={"best": "mio"})


def test_nan_stops_with_the_batch_saved(data, tmp_path, monkeypatch):
    monkeypatch.setattr(Tiny, "poison", {3})
    with pytest.raises(PixelwiseError, match=r"broke at step 2.*nan.*\.png.*nan_batch.pt") as error:
        run(data, tmp_path / "run")
    assert error.value.exit_code == 1
    batch = torch.load(tmp_path / "run/state/nan_batch.pt", weights_only=True)
    assert batch["images"].shape == (4, 3, 24, 24)
    assert len(batch["paths"]) == len(batch["indices"]) == len(batch["targets"]) == 4
    assert (tmp_path / "run/weights/best.safetensors").exists(), "work done so far is kept"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_finish_the_step_and_save(data, tmp_path, monkeypatch, number):
    before = signal.getsignal(number)
    monkeypatch.setattr(Tiny, "at_call", {3: lambda: signal.raise_signal(number)})
    with pytest.raises(TrainingInterrupted, match=r"step 3; go on with: pixelwise train --resume"):
        run(data, tmp_path / "run")
    assert signal.getsignal(number) == before
    state = torch.load(tmp_path / "run/state/last.pt", weights_only=True)
    assert state["position"]["step"] == 3
    assert TrainingInterrupted.exit_code == 130


def test_fine_tuning_from_a_checkpoint(data, tmp_path):
    first = run(data, tmp_path / "first", model={"width": 4})
    second = pw.train(
        str(first.best), data={"source": str(data), "workers": 0, "batch_size": 4}, steps=1,
        out=tmp_path / "second", quiet=True, optim={"lr": 0.0}, **{"log.pictures": 0},
    )  # fmt: skip
    assert_same_weights(weights(first.best), weights(second.best))
    assert (
        "reused 3 of 3 classes by name: ground, red, blue" in (second.out / "log.txt").read_text()
    )


def test_dry_run_leaves_nothing_and_counts_memory(data, tmp_path):
    recipe = recipes.validate(recipe_tree(data, tmp_path / "run", optim={"ema_decay": 0.9}))
    result = dry_run(recipe, quiet=True)
    assert list(tmp_path.iterdir()) == []
    tiny = 4 * sum(v.numel() for v in Tiny(Tiny.config()).parameters()) / 2**20
    assert result.memory["weights"] == pytest.approx(tiny)
    assert result.memory["gradients"] == pytest.approx(tiny)
    assert result.memory["optimizer"] == pytest.approx(2 * tiny, rel=0.05)
    assert result.memory["averaged weights"] == pytest.approx(tiny)
    # input, two convolutions, norm, relu and classifier of 4 pictures of 24 x 24 at least
    assert result.memory["activations"] > 4 * 24 * 24 * 4 * (3 + 8 + 8 + 3) / 2**20


def test_weights_between_objects_reach_the_loss(tmp_path, monkeypatch):
    """Every picture has two neighbours; validation is not weighted."""
    content = coco_content(images=4)
    content["annotations"] = [
        annotation(2 * i + k, 10 + i, 7, square(x, 4, 8))
        for i in range(4)
        for k, x in enumerate((4, 14))
    ]
    source = write_coco(tmp_path, content)
    seen = {True: [], False: []}
    loss = Tiny.loss

    def spy(self, images, targets):
        seen[self.training] += [t.weights for t in targets]
        return loss(self, images, targets)

    monkeypatch.setattr(Tiny, "loss", spy)
    keys = {"val": "train", "border_weight": 10, "border_sigma_px": 4}
    run(source, tmp_path / "run", data=keys)
    assert len(seen[True]) == 8
    assert all(weights.max() > 5 and weights.min() == 1 for weights in seen[True])
    assert seen[False]
    assert all(weights is None for weights in seen[False])


def test_a_grid_over_the_input_is_warned_of_crops(tmp_path):
    """SOLO alone, and only where a recipe crops."""
    content = coco_content(images=2)
    content["annotations"] = [annotation(i, 10 + i, 7, square(4, 4, 8)) for i in range(2)]
    source = write_coco(tmp_path, content)

    def notes(name, crop):
        tree = {
            "model": {"name": name, "backbone": "test_efficientnet"},
            "data": {"source": str(source), "val": "train", "crop": crop},
            "run": {"steps": 1},
        }
        return prepare(recipes.validate(tree), quiet=True).notes

    (advice,) = notes("solov2_lite0", (64, 96))
    assert "a crop of 64x96" in advice
    assert notes("solov2_lite0", None) == notes("yolact_lite0", (64, 96)) == ()


WRONG = [
    ({"data": {"batch_size": 4}, "optim": {"accumulate": 3}}, UsageError, "multiple of 3"),
    ({"data": {"batch_size": 9}}, UsageError, "more than the 8 pictures of split 'train'"),
    ({"data": {"train": "nowhere"}}, DataError, "no split 'nowhere'"),
    ({"data": {"source": "none.yaml"}}, DataError, "none.yaml"),
    ({"data": {"mean": [0.1]}}, UsageError, "give both or neither"),
    ({"data": {"class_weights": [1.0]}}, UsageError, "1 numbers, the data 3 classes"),
    ({"data": {"border_weight": 10}}, DataError, "masks says one class per pixel"),
    ({"run": {"precision": "fp16"}}, UsageError, "fp16.*GPU"),
    ({"model": {"name": "tinny"}}, UsageError, "did you mean"),
    ({"model": {"widht": 3}}, UsageError, "did you mean 'width'"),
    ({"model": {"width": "wide"}}, UsageError, "model.width = 'wide'.*integer"),
    ({"model": {"weights": "none.safetensors"}}, ModelError, "none.safetensors"),
    ({"optim": {"freeze_stages": 7}}, UsageError, "backbone has 2 stages"),
    ({"log": {"mlflow": True}}, MissingExtraError, r"pixelwise\[mlflow\]"),
]


@pytest.mark.parametrize(("sections", "error", "message"), WRONG)
def test_wrong_values_are_named(data, tmp_path, sections, error, message):
    with pytest.raises(error, match=message):
        run(data, tmp_path / "run", **sections)


def test_a_folder_with_a_run_is_not_overwritten(data, tmp_path):
    run(data, tmp_path / "run")
    with pytest.raises(UsageError, match=r"holds a run already.*--resume"):
        run(data, tmp_path / "run")
    with pytest.raises(UsageError, match="no run to resume"):
        resume(tmp_path / "elsewhere")


def test_a_full_disk_keeps_the_last_state(data, tmp_path, monkeypatch):
    """The disk fills up while the second state is written: the first one stays usable."""
    real, calls = torch.save, []

    def save(*args, **kwargs):
        calls.append(1)
        if len(calls) == 4:
            raise OSError(28, "No space left on device")
        return real(*args, **kwargs)

    monkeypatch.setattr(torch, "save", save)
    with pytest.raises(OSError, match="No space left"):
        run(data, tmp_path / "run")
    monkeypatch.undo()
    add_tiny_system()
    resumed = resume(tmp_path / "run", quiet=True)
    straight = run(data, tmp_path / "straight")
    assert_same_weights(weights(resumed.last), weights(straight.last))


@pytest.mark.slow
def test_compiled_training_is_the_same(data, tmp_path):
    keys = {"eval": {"every_steps": 99}, "log": {"pictures": 0, "every_steps": 1}}
    plain = run(data, tmp_path / "plain", **keys)
    compiled = run(data, tmp_path / "compiled", run={"compile": True}, **keys)
    for a, b in zip(rows_of(plain), rows_of(compiled), strict=True):
        if "train/loss" in a:
            assert a["train/loss"] == pytest.approx(b["train/loss"], rel=1e-4)
