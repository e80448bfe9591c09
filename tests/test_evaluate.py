"""The evaluation loop: numbers equal a plain loop, whatever the batch size and the processes."""

import json
import pickle
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from torch import Tensor, nn

import pixelwise as pw
from pixelwise.errors import ModelError, UsageError
from pixelwise.evaluate import evaluate_system, match_classes
from pixelwise.evaluation.scores import Report
from pixelwise.metrics.coco_ap import CocoAP
from pixelwise.metrics.miou import Confusion
from pixelwise.ops import rle
from pixelwise.predict import Segmenter
from pixelwise.shapes import CLASSES, write_shapes
from pixelwise.spec import InputSpec
from pixelwise.types import InstancePrediction, SemanticPrediction

INPUT = InputSpec()


class Raw(NamedTuple):
    logits: Tensor  # [B, K, H, W]


class PixelSystem(nn.Module):
    """A semantic system of one convolution, whose loss draws random pixels."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.head = nn.Conv2d(3, num_classes, 3, padding=1)
        for parameter in self.head.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator)
        self.norm = nn.BatchNorm2d(3)
        self.frozen = nn.BatchNorm2d(3).eval()

    def forward(self, images: Tensor) -> Raw:
        return Raw(self.head(self.frozen(self.norm(images))))

    def loss(self, images, targets):
        logits = self(images).logits
        labels = torch.stack([t.labels for t in targets])
        drawn = torch.rand(labels.shape) < 0.5
        kept = torch.where(drawn, labels, torch.full_like(labels, 255))
        return {
            "pixel": nn.functional.cross_entropy(logits, kept, ignore_index=255),
            "small": logits.square().mean() * 0.01,
        }

    def decode(self, raw: Raw, sizes, *, with_probs: bool = False):
        found = []
        for x, s in zip(raw.logits, sizes, strict=True):
            logits = x[:, : s.content[0], : s.content[1]]
            probs = logits.softmax(0) if with_probs else None
            found.append(SemanticPrediction(labels=logits.argmax(0).to(torch.uint8), probs=probs))
        return found


class OracleSystem(nn.Module):
    """An instance system that knows the pictures: it finds their objects a few pixels off."""

    def __init__(self, view) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        mean, std = (torch.tensor(v)[:, None, None] for v in (INPUT.mean, INPUT.std))
        self.known = []
        for sample in view:
            pixels = torch.from_numpy(sample.image.copy()).permute(2, 0, 1) / 255
            rng = np.random.default_rng(sample.index)
            masks = rle.decode(sample.instances.masks)
            shifts = rng.integers(-2, 3, (len(masks), 2))
            moved = [np.roll(m, s, (0, 1)) for m, s in zip(masks, shifts, strict=True)]
            found = rle.encode(np.array(moved, np.uint8).reshape(-1, *sample.size))
            order = rng.permutation(len(moved))
            prediction = InstancePrediction(
                boxes=torch.from_numpy(rle.tight_boxes(found)[order]),
                labels=torch.from_numpy(sample.instances.labels[order]),
                scores=torch.linspace(0.95, 0.3, len(order)),
                masks=found.select(order),
            )
            self.known.append((float(((pixels - mean) / std).mean()), prediction))

    def forward(self, images: Tensor) -> Raw:
        return Raw(images.mean(1, keepdim=True) * self.weight)

    def loss(self, images, targets):
        return {"level": self(images).logits.mean() - torch.rand(())}

    def decode(self, raw: Raw, sizes):
        found = []
        for x, size in zip(raw.logits, sizes, strict=True):
            key = float(x[0, : size.content[0], : size.content[1]].detach().mean())
            found.append(min(self.known, key=lambda item: abs(item[0] - key))[1])
        return found


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_shapes(tmp_path_factory.mktemp("shapes"), train=1, val=5, size=(72, 90))


def semantic(data: Path, **settings) -> Report:
    view = pw.data.open(data, split="val").as_semantic()
    system = PixelSystem(len(view.classes)).train()
    system.frozen.eval()
    return evaluate_system(
        system, view, task="semantic", input=INPUT, classes=view.classes, quiet=True, **settings
    )


def instance(data: Path, **settings) -> Report:
    view = pw.data.open(data, split="val").as_instances()
    return evaluate_system(
        OracleSystem(view),
        view,
        task="instance",
        input=INPUT,
        classes=view.classes,
        quiet=True,
        **settings,
    )


def same(a: Report, b: Report) -> None:
    """All numbers equal; the time and the batch size are how, not what."""
    one, other = a.to_dict(), b.to_dict()
    one.pop("about"), other.pop("about")
    assert json.dumps(one) == json.dumps(other)


def test_semantic_equals_a_plain_loop(data: Path) -> None:
    view = pw.data.open(data, split="val").as_semantic()
    report = semantic(data)
    system = PixelSystem(len(view.classes)).eval()
    mean, std = (torch.tensor(v)[:, None, None] for v in (INPUT.mean, INPUT.std))
    counts = Confusion(len(view.classes))
    for sample in view:
        pixels = torch.from_numpy(sample.image.copy()).permute(2, 0, 1) / 255
        labels = system(((pixels - mean) / std)[None]).logits[0].argmax(0)
        counts.update(labels, sample.labels)
    for name, value in counts.compute().items():
        assert report.metrics[name] == pytest.approx(value, abs=1e-12), name
    assert report.confusion == counts.matrix.tolist()
    assert report.classes == (*CLASSES, "background")
    assert report.about["images"] == 5
    assert [row["class"] for row in report.per_class()] == list(report.classes)
    assert "loss" not in report.metrics


def test_instance_equals_a_plain_loop(data: Path) -> None:
    view = pw.data.open(data, split="val").as_instances()
    report = instance(data)
    system = OracleSystem(view)
    mean, std = (torch.tensor(v)[:, None, None] for v in (INPUT.mean, INPUT.std))
    metric = CocoAP(view.classes)
    from pixelwise.types import ImageSize

    for i, sample in enumerate(view):
        pixels = (torch.from_numpy(sample.image.copy()).permute(2, 0, 1) / 255 - mean) / std
        (prediction,) = system.decode(system(pixels[None]), [ImageSize.same(sample.size)])
        metric.update(prediction, sample.instances, i)
    for kind in ("mask", "box"):
        for name, value in metric.compute(kind).named().items():
            assert report.metrics[name] == value, name
    assert report.main == "mask_ap"
    assert 0.1 < report.metrics["mask_ap"] < 0.95
    assert report.curves is not None
    assert len(report.curves["recall"]) == len(report.curves["mean"]["0.5"]) == 101


@pytest.mark.parametrize("run", [semantic, instance])
def test_batches_and_workers_change_nothing(data: Path, run) -> None:
    same(run(data), run(data, batch_size=3))
    same(run(data), run(data, batch_size=2, workers=1))


@pytest.mark.parametrize("run", [semantic, instance])
def test_one_tile_over_the_picture_is_the_picture(data: Path, run) -> None:
    same(run(data), run(data, tile=256))


@pytest.mark.parametrize(
    "options",
    [
        {"tile": 48, "overlap": 0.4},
        {"tile": 48, "seams": "mmseg"},
        {"crf": "deeplabv1"},
    ],
)
def test_what_is_judged_is_what_prediction_gives(data: Path, options) -> None:
    view = pw.data.open(data, split="val").as_semantic()
    model = Segmenter(
        PixelSystem(len(view.classes)),
        name="pixels",
        classes=view.classes,
        input=INPUT,
        task="semantic",
        device="cpu",
    )
    counts = Confusion(len(view.classes))
    for sample in view:
        counts.update(model.predict(sample.image, **options).semantic.labels, sample.labels)
    report = semantic(data, **options)
    assert report.confusion == counts.matrix.tolist()
    assert report.confusion != semantic(data).confusion
    json.dumps(report.about, allow_nan=False)


def test_the_report_says_how_pictures_were_predicted(data: Path) -> None:
    plain = semantic(data).about["settings"]
    assert plain == {"batch_size": 1, "precision": "fp32", "absent": "defined"}
    assert semantic(data, tile=64).about["settings"] == plain | {"tile": 64, "overlap": 0.25}
    other = semantic(data, tile=48, seams="semseg", tta=(1.0,), crf=True).about["settings"]
    assert other["sliding"] == {"rule": "semseg", "window": 48, "stride": 32}
    assert other["tta"] == {"scales": (1.0,), "flip": True}
    assert other["crf"]["sigma_alpha"] == 67


def test_bf16_is_close(data: Path) -> None:
    exact, rough = semantic(data), semantic(data, precision="bf16")
    assert rough.metrics["pixel_accuracy"] == pytest.approx(
        exact.metrics["pixel_accuracy"], abs=0.02
    )


def test_settings_reach_the_metrics(data: Path) -> None:
    report = instance(data, max_dets=500, boundary=True)
    assert {"mask_ar500", "boundary_ap", "box_ap75"} <= report.metrics.keys()
    zero = semantic(data, absent="all_zero")
    assert zero.about["settings"]["absent"] == "all_zero"


def test_limits_that_hide_objects_are_told(data: Path) -> None:
    assert instance(data).about["notes"] == []
    (note,) = instance(data, max_dets=[1]).about["notes"]
    assert "raise max_dets" in note
    view = pw.data.open(data, split="val").as_instances()
    system = OracleSystem(view)
    system.cfg = SimpleNamespace(detections_per_image=50)
    report = evaluate_system(
        system,
        view,
        task="instance",
        input=INPUT,
        classes=view.classes,
        max_dets=500,
        quiet=True,
    )
    assert "at most 50 objects" in report.summary()


def test_a_loss_is_measured_and_training_is_not_disturbed(data: Path) -> None:
    view = pw.data.open(data, split="val").as_semantic()
    system = PixelSystem(len(view.classes)).train()
    system.frozen.eval()
    stored = {k: v.clone() for k, v in system.state_dict().items()}
    torch.manual_seed(5)
    before = torch.get_rng_state()

    def run() -> Report:
        return evaluate_system(
            system,
            view,
            task="semantic",
            input=INPUT,
            classes=view.classes,
            with_loss=True,
            quiet=True,
        )

    first = run()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(99)
    assert run().metrics["loss"] == first.metrics["loss"]
    assert first.metrics["loss"] == pytest.approx(
        first.metrics["loss/pixel"] + first.metrics["loss/small"]
    )
    assert system.training
    assert system.norm.training
    assert not system.frozen.training
    assert all(torch.equal(v, stored[k]) for k, v in system.state_dict().items())


def _rank(rank: int, world: int, data: Path, folder: Path) -> None:
    import torch.distributed as dist

    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world
    )
    for name, run in (("semantic", semantic), ("instance", instance)):
        report = run(data, batch_size=2, with_loss=True)
        (folder / f"{name}-{rank}.json").write_text(json.dumps(report.to_dict()))
    dist.destroy_process_group()


@pytest.mark.parametrize("run", [semantic, instance])
@pytest.mark.parametrize("world", [2, 5])
def test_shards_join_to_the_whole(data: Path, run, world: int, monkeypatch) -> None:
    """The ranks one after another in this process; with five, two of them have nothing to do."""
    module = sys.modules["pixelwise.evaluation.loop"]
    alone = run(data, batch_size=2, with_loss=True).to_dict()
    parts: list[bytes] = []

    def collect(into: list, mine: object) -> None:
        parts.append(pickle.dumps(mine))
        into[:] = [pickle.loads(p) for p in parts]

    monkeypatch.setattr(torch.distributed, "all_gather_object", collect)
    for rank in range(world):
        monkeypatch.setattr(module, "rank_and_world", lambda rank=rank: (rank, world))
        shared = run(data, batch_size=2, with_loss=True).to_dict()
    for one in (alone, shared):
        one.pop("about")
    assert json.dumps(shared) == json.dumps(alone)


@pytest.mark.slow
def test_two_processes_equal_one(data: Path, tmp_path: Path) -> None:
    """Three batches on two ranks: nothing is padded, and every rank knows the whole result."""
    mp.spawn(_rank, args=(2, data, tmp_path), nprocs=2)
    for name, run in (("semantic", semantic), ("instance", instance)):
        alone = run(data, batch_size=2, with_loss=True).to_dict()
        for rank in range(2):
            shared = json.loads((tmp_path / f"{name}-{rank}.json").read_text())
            for one in (alone, shared):
                one.pop("about", None)
            assert shared == alone


def test_worst_pictures_come_first(data: Path) -> None:
    report = semantic(data)
    scores = [image.score for image in report.worst]
    assert scores == sorted(scores)
    assert len(report.worst) == 5
    assert all(Path(image.path).is_file() for image in report.worst)


def test_worst_pictures_are_drawn(data: Path, tmp_path: Path) -> None:
    from PIL import Image

    from pixelwise.evaluate import draw_worst
    from pixelwise.report import write_report

    view = pw.data.open(data, split="val").as_instances()
    system = OracleSystem(view).train()
    report = instance(data)
    (tmp_path / "evaluation.json").write_text(json.dumps(report.to_dict()))
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures/worst_00099.jpg").touch()  # of an earlier evaluation
    files = draw_worst(
        system, view, report, out=tmp_path, input=INPUT, classes=view.classes, count=2
    )
    assert system.training
    assert [f.name for f in files] == [f"worst_{w.index:05d}.jpg" for w in report.worst[:2]]
    assert sorted((tmp_path / "pictures").iterdir()) == sorted(files)
    with Image.open(files[0]) as picture:
        assert picture.width >= 120  # two pictures of 60 side by side
    page = write_report(tmp_path).read_text()
    assert all(f'src="pictures/{f.name}"' in page for f in files)


@pytest.mark.parametrize(
    ("model", "data", "expected", "why"),
    [
        (("a", "b"), ("a", "b"), None, "the same: nothing to do"),
        (("a", "b"), ("b", "a"), [1, 0], "another order is translated"),
        (("x", "a", "b"), ("a", "b"), [-1, 0, 1], "a class the data lacks"),
    ],
)
def test_classes_match_by_name(model, data, expected, why) -> None:
    found = match_classes(model, data)
    assert (None if found is None else found.tolist()) == expected, why


def test_a_missing_class_names_both_lists() -> None:
    with pytest.raises(ModelError, match=r"1 of the data set's 2 classes: dog") as error:
        match_classes(("cat", "cow"), ("cat", "dog"))
    assert "model: cat, cow" in str(error.value)
    assert "data: cat, dog" in str(error.value)


def test_another_class_order_gives_the_same_numbers(data: Path) -> None:
    """A network whose outputs are permuted and renamed alike is the same network."""
    view = pw.data.open(data, split="val").as_semantic()
    order = [2, 0, 3, 1]
    system, other = PixelSystem(4), PixelSystem(4)
    other.head.weight.data = system.head.weight.data[order]
    assert system.head.bias is not None
    other.head.bias.data = system.head.bias.data[order]
    names = [view.classes[i] for i in order]

    def run(model: nn.Module, classes) -> Report:
        return evaluate_system(
            model, view, task="semantic", input=INPUT, classes=classes, quiet=True
        )

    same(run(system, view.classes), run(other, names))
    with pytest.raises(UsageError, match="same order"):
        evaluate_system(
            other, view, task="semantic", input=INPUT, classes=names, with_loss=True, quiet=True
        )


def test_more_model_classes_than_the_data_has(data: Path) -> None:
    """Their pixels count as wrong, their objects not at all."""
    view = pw.data.open(data, split="val").as_semantic()
    report = evaluate_system(
        PixelSystem(6),
        view,
        task="semantic",
        input=INPUT,
        classes=("zebra", *view.classes, "yak"),
        quiet=True,
    )
    pixels = sum(int((s.labels != 255).sum()) for s in view)
    assert report.confusion is not None
    assert sum(map(sum, report.confusion)) < pixels  # some were taken for a zebra or a yak
    hits = sum(report.confusion[i][i] for i in range(4))
    assert report.metrics["pixel_accuracy"] == pytest.approx(hits / pixels)
    objects = pw.data.open(data, split="val").as_instances()
    extended = evaluate_system(
        OracleSystem(objects),
        objects,
        task="instance",
        input=INPUT,
        classes=(*objects.classes, "yak"),
        quiet=True,
    )
    same(extended, instance(data))


def test_the_report_goes_through_json_and_back(data: Path) -> None:
    for report in (semantic(data, with_loss=True), instance(data)):
        text = json.dumps(report.to_dict(), allow_nan=False)
        again = Report.from_dict(json.loads(text))
        assert json.dumps(again.to_dict(), allow_nan=False) == text
        summary = again.summary()
        assert report.main in summary
        assert "worst pictures" in summary
        assert all(name in summary for name in report.classes)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"batch_size": 0}, "batch_size=0"),
        ({"workers": -1}, "workers=-1"),
        ({"precision": "int8"}, "precision='int8'"),
        ({"absent": "maybe"}, "absent='maybe'"),
        ({"tile": 64, "with_loss": True}, "leave tile, tta and crf out"),
        ({"crf": "deeplabv9"}, "did you mean"),
        ({"tta": True, "precision": "bf16"}, "compute in fp32"),
    ],
)
def test_bad_settings(data: Path, setting, message) -> None:
    with pytest.raises(UsageError, match=message):
        semantic(data, **setting)


def test_a_bad_limit_of_detections(data: Path) -> None:
    with pytest.raises(UsageError, match="max_dets"):
        instance(data, max_dets=0)


def test_dense_masks_are_never_kept(data: Path) -> None:
    """What a meter holds is compressed: far below one byte per pixel and object."""
    from pixelwise.evaluation.meters import InstanceMeter, Truth

    view = pw.data.open(data, split="val").as_instances()
    size, count = (600, 800), 50
    mask = np.zeros((1, *size), np.uint8)
    mask[0, 100:400, 200:600] = 1
    masks = rle.encode(mask).select([0] * count)
    prediction = InstancePrediction(
        boxes=torch.from_numpy(rle.tight_boxes(masks)),
        labels=torch.zeros(count, dtype=torch.int64),
        scores=torch.linspace(1, 0, count),
        masks=masks,
    )
    from pixelwise.data.sample import Instances

    truth = Instances(
        masks=masks,
        labels=np.zeros(count, np.int64),
        boxes=rle.tight_boxes(masks),
        crowd=np.zeros(count, np.bool_),
        ids=np.arange(count),
    )
    meter = InstanceMeter(view.classes)
    meter.update(prediction, Truth(index=0, path="x.png", instances=truth))
    assert len(pickle.dumps(meter)) < 0.05 * count * size[0] * size[1]
