"""`pixelwise val` as a user types it."""

import json
from pathlib import Path

import pytest

import pixelwise as pw
from pixelwise import checkpoint
from pixelwise.cli import run
from pixelwise.prediction.augmented import Augmentation
from pixelwise.shapes import CLASSES, write_shapes
from pixelwise.spec import InputSpec
from pixelwise.systems.deeplabv3plus import DeepLabV3Plus

CONFIG = {"backbone": "resnet18"}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_shapes(tmp_path_factory.mktemp("shapes"), train=1, val=2, size=(48, 64))


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """An untrained network; what is tested is the way of its numbers, not their height."""
    path = tmp_path_factory.mktemp("model") / "untrained.safetensors"
    classes = (*CLASSES, "background")
    checkpoint.save(
        path,
        pw.create("deeplabv3plus", num_classes=len(classes), **CONFIG),
        name="deeplabv3plus",
        classes=classes,
        input=InputSpec(),
    )
    return path


def test_table(model: Path, data: Path, capsys) -> None:
    assert run(["val", str(model), str(data), "--quiet"]) == 0
    out = capsys.readouterr().out
    assert "miou" in out
    assert "boundary_iou" in out
    for name in (*CLASSES, "background"):
        assert name in out


def test_json_is_one_document(model: Path, data: Path, capsys) -> None:
    assert run(["val", str(model), str(data), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["task"] == "semantic"
    assert document["about"]["split"] == "val"
    assert document["about"]["images"] == 2
    assert 0 <= document["metrics"]["pixel_accuracy"] <= 1
    report = pw.evaluate(str(model), data, quiet=True)
    assert document["metrics"] == report.to_dict()["metrics"]


def test_split_and_out(model: Path, data: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "new" / "result"
    assert run(["val", str(model), str(data), "--split", "all", "--out", str(out), "--quiet"]) == 0
    assert "wrote" in capsys.readouterr().err
    assert json.loads((out / "evaluation.json").read_text())["about"]["images"] == 3
    page = (out / "report.html").read_text()
    assert "Confusion" in page
    assert 'src="pictures/worst_' in page


@pytest.mark.parametrize(
    ("words", "settings"),
    [
        (["--tile", "48", "--overlap", "0.1"], {"tile": 48, "overlap": 0.1}),
        (["--tile", "48", "--seams", "semseg"], {"tile": 48, "seams": "semseg"}),
        (["--scales", "0.5,1", "--no-flip"], {"tta": Augmentation(scales=(0.5, 1.0), flip=False)}),
        (["--crf"], {"crf": True}),
        (["--crf-preset", "deeplabv1"], {"crf": "deeplabv1"}),
    ],
)
def test_tiles_augmentation_and_crf(model: Path, data: Path, words, settings, capsys) -> None:
    assert run(["val", str(model), str(data), "--json", "--quiet", *words]) == 0
    document = json.loads(capsys.readouterr().out)
    report = pw.evaluate(str(model), data, quiet=True, **settings).to_dict()
    assert document["metrics"] == report["metrics"]
    assert document["about"]["settings"] == report["about"]["settings"]
    assert report["about"]["settings"].keys() & {"tile", "sliding", "tta", "crf"}


def test_the_worst_pictures_are_drawn_as_they_were_judged(
    model: Path, data: Path, tmp_path: Path, monkeypatch
) -> None:
    sizes: list[tuple[int, ...]] = []
    forward = DeepLabV3Plus.forward

    def record(self, images):
        sizes.append(tuple(images.shape[2:]))
        return forward(self, images)

    monkeypatch.setattr(DeepLabV3Plus, "forward", record)
    words = ["--tile", "32", "--seams", "semseg", "--out", str(tmp_path), "--quiet"]
    assert run(["val", str(model), str(data), *words]) == 0
    assert set(sizes) == {(32, 32)}
    assert len(list((tmp_path / "pictures").glob("worst_*.jpg"))) == 2


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--split", "tset"], 3, "tset"),
        (["--max-dets", "many"], 2, "--max-dets 'many'"),
        (["--absent", "never"], 2, "never"),
        (["--batch-size", "0"], 2, "batch_size=0"),
        (["--plots"], 2, "--out DIR"),
        (["--precision", "fp8"], 2, "fp8"),
        (["--crf-preset", "deeplabv3"], 2, "deeplabv1"),
        (["--crf", "--precision", "bf16"], 2, "compute in fp32"),
        (["--no-flip"], 2, "--tta or --scales"),
        (["--seams", "semseg"], 2, "give their side"),
        (["--tile", "4"], 2, "at least 16"),
    ],
)
def test_bad_options(model: Path, data: Path, words, code, message, capsys) -> None:
    assert run(["val", str(model), str(data), "--quiet", *words]) == code
    captured = capsys.readouterr()
    assert message in captured.err
    assert "Traceback" not in captured.err
    assert not captured.out


def test_missing_things(model: Path, data: Path, tmp_path: Path, capsys) -> None:
    assert run(["val", str(tmp_path / "none.safetensors"), str(data)]) == 4
    assert "none.safetensors" in capsys.readouterr().err
    assert run(["val", str(model), str(tmp_path / "none.yaml")]) == 3
    assert "none.yaml" in capsys.readouterr().err


def test_classes_that_do_not_fit(model: Path, tmp_path: Path, capsys) -> None:
    other = write_shapes(tmp_path, train=1, val=1, size=(32, 32))
    other.write_text(other.read_text().replace("[disc, square, triangle]", "[disc, cube, cone]"))
    for split in ("train", "val"):
        path = tmp_path / f"annotations/{split}.json"
        path.write_text(path.read_text().replace('"square"', '"cube"').replace("triangle", "cone"))
    assert run(["val", str(model), str(other), "--quiet"]) == 4
    message = capsys.readouterr().err
    assert "cube, cone" in message
    assert "model: disc, square, triangle, background" in message
    assert "data: disc, cube, cone, background" in message


def test_set_changes_the_network_and_keeps_the_weights(model: Path, data: Path, capsys) -> None:
    command = ["val", str(model), str(data), "--json"]
    dense = ["--set", "output_stride=8", "--set", "aspp_rates=[12,24,36]"]
    assert run([*command, *dense]) == 0
    changed = json.loads(capsys.readouterr().out)["metrics"]
    seg = pw.load(model, output_stride=8, aspp_rates=(12, 24, 36))
    assert changed == pw.evaluate(seg, data, quiet=True).to_dict()["metrics"]
    assert run([*command, "--set", "aspp_width=3"]) == 2
    assert "aspp_width=3" in capsys.readouterr().err
