"""Other projects' files, from the file alone."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

import pixelwise as pw
from pixelwise import checkpoint
from pixelwise.convert.files import read_checkpoint
from pixelwise.convert.writing import to_origin, write
from pixelwise.errors import ConversionError, UsageError
from pixelwise.importing import import_file, read_any
from tests.foreign import mmseg_file, semseg_file, state_of, torchvision_file


def test_a_file_says_what_it_is(tmp_path) -> None:
    found = import_file(mmseg_file(tmp_path))
    assert (found.origin, found.name.startswith("pspnet")) == ("mmseg", True)
    assert (found.classes, found.colors) == (("a", "b"), ((0, 0, 0), (1, 2, 3)))
    assert found.input.mean == (123.675, 116.28, 103.53)
    assert {s.field: (s.value, s.assumed) for s in found.settings} == {
        "output_stride": (8, False),
        "bins": ((1, 2, 3, 6), False),
        "align_corners": (False, False),
    }
    assert found.config["backbone"] == "resnet18"


def test_every_key_is_accounted_for(tmp_path) -> None:
    path = torchvision_file(tmp_path)
    found = import_file(path)
    state = read_checkpoint(path).state
    assert {m.theirs for m in found.moved} | set(found.dropped) == set(state)
    assert {m.ours for m in found.moved} == set(found.system.state_dict())
    kinds = {m.ours: m.how for m in found.moved}
    assert kinds["box_head.classify.weight"] == "permuted"  # its background comes last in ours
    assert kinds["backbone.layer1.0.conv1.weight"] == "renamed"
    assert all(m.shape == tuple(found.system.state_dict()[m.ours].shape) for m in found.moved)


def test_what_nobody_says_is_called_assumed(tmp_path) -> None:
    found = import_file(semseg_file(tmp_path))
    said = {s.field: s for s in found.settings}
    assert said["output_stride"].assumed
    assert said["output_stride"].why == "what semseg publishes"
    given = import_file(found.path, settings={"output_stride": 16})
    said = {s.field: s for s in given.settings}
    assert (said["output_stride"].value, said["output_stride"].why) == (16, "--set")
    assert found.classes == ("class 0", "class 1", "class 2")
    assert "--classes" in found.notes[-1]


def test_the_name_of_a_released_file_counts(tmp_path) -> None:
    path = torchvision_file(tmp_path, num_classes=90, name="maskrcnn_resnet50_fpn_coco-1234.pth")
    found = import_file(path)
    assert found.config["conventions"] == "torchvision_v1"
    assert found.classes[0] == "person"
    assert any("assumed from their number" in note for note in found.notes)
    published = import_file(path.rename(tmp_path / "maskrcnn_resnet50_fpn_v2_coco-73cbd019.pth"))
    assert published.licence  # that of the catalogue's row of this name
    assert any("mask_rcnn_resnet50_fpn_v2.torchvision_coco" in note for note in published.notes)


def test_class_names_are_checked(tmp_path) -> None:
    path = semseg_file(tmp_path)
    assert import_file(path, classes=["x", "y", "z"]).classes == ("x", "y", "z")
    with pytest.raises(UsageError, match="2 class names were given, the file has 3"):
        import_file(path, classes=["x", "y"])
    with pytest.raises(UsageError, match="output_stride"):
        import_file(path, settings={"output_strid": 8})


def test_the_saved_file_is_one_of_ours(tmp_path) -> None:
    found = import_file(mmseg_file(tmp_path))
    found.save(tmp_path / "ours.safetensors")
    header = checkpoint.read_header(tmp_path / "ours.safetensors")
    assert header["classes"] == ["a", "b"]
    assert header["source"]["origin"] == "mmseg"
    assert header["source"]["sha256"] == found.sha256
    loaded = checkpoint.load(tmp_path / "ours.safetensors")
    images = torch.randn(1, 3, 40, 48)
    with torch.inference_mode():
        assert torch.equal(loaded.system(images).logits, found.system(images).logits)
    assert json.loads(json.dumps(found.report()))["keys"]


def test_a_foreign_file_predicts(tmp_path) -> None:
    seg = pw.load(str(mmseg_file(tmp_path)))
    Image.fromarray(np.full((40, 50, 3), 90, np.uint8)).save(tmp_path / "a.png")
    result = seg.predict(str(tmp_path / "a.png"))
    assert result.classes == ("a", "b")
    assert result.semantic.labels.shape == (40, 50)


def test_a_partial_import_takes_what_fits(tmp_path) -> None:
    path = semseg_file(tmp_path)
    content = torch.load(path, weights_only=True)
    state = content["state_dict"]
    state["module.extra.weight"] = torch.zeros(3)
    state["module.cls.0.weight"] = torch.zeros(16, 7, 3, 3)
    del state["module.aux.4.bias"]
    torch.save(content, path)
    with pytest.raises(ConversionError, match="--partial"):
        import_file(path)
    found = import_file(path, partial=True)
    report = found.report()
    assert report["surplus"] == ["extra.weight"]
    assert report["missing"] == ["auxiliary.classify.bias"]
    assert report["shapes"][0].startswith("cls.0.weight")
    assert "fuse.conv.weight" not in {m.ours for m in found.moved}
    stem = found.system.state_dict()["backbone.stem.0.conv.weight"]
    assert torch.equal(stem, state["module.layer0.0.weight"])


@pytest.mark.parametrize(
    ("make", "origin", "suffix"),
    [
        (torchvision_file, "torchvision", ".pth"),
        (torchvision_file, "detectron2", ".pkl"),
        (torchvision_file, "detectron2", ".pth"),
        (torchvision_file, "mmdet", ".pth"),
        (mmseg_file, "mmseg", ".pth"),
    ],
)
def test_the_way_back(tmp_path, make, origin, suffix) -> None:
    """Written under another project's names, read again: the same network."""
    found = import_file(make(tmp_path))
    made = to_origin(found.system, name=found.name, origin=origin)
    path = tmp_path / f"theirs{suffix}"
    write(path, made.state, origin=origin, classes=found.classes)
    again = import_file(path, settings=made.settings)
    assert again.origin == origin
    assert again.config == found.config
    ours = found.system.state_dict()
    assert all(torch.equal(v, ours[k]) for k, v in again.system.state_dict().items() if k in ours)
    assert bool(made.zeros) == (origin == "torchvision")
    if origin == found.origin:
        theirs = read_checkpoint(found.path).state
        assert set(made.state) == set(theirs)
        assert all(torch.equal(made.state[k], v) for k, v in theirs.items() if k not in made.zeros)


def test_what_another_project_has_not_is_not_written() -> None:
    net = pw.create("pspnet", num_classes=2, backbone="tf_efficientnet_lite0", head_width=8)
    with pytest.raises(ConversionError, match="has a form that mmseg does not have"):
        to_origin(net, name="pspnet", origin="mmseg")
    with pytest.raises(UsageError, match="semseg, mmseg, smp"):
        to_origin(net, name="pspnet", origin="torchvision")


def test_our_files_are_read_as_they_are(tmp_path) -> None:
    found = import_file(semseg_file(tmp_path))
    found.save(tmp_path / "ours.safetensors")
    stored = read_any(tmp_path / "ours.safetensors")
    assert stored.header["system"] == found.name
    assert not checkpoint.is_foreign(tmp_path / "ours.safetensors")
    assert checkpoint.is_foreign(found.path)
    state = state_of("semseg", "pspnet", num_classes=2, backbone="resnet18")
    from safetensors.torch import save_file

    save_file({k: v.contiguous() for k, v in state.items()}, tmp_path / "theirs.safetensors")
    assert checkpoint.is_foreign(tmp_path / "theirs.safetensors")


def recipe_from(path, data, **sections):
    from pixelwise.training import recipe as recipes

    tree = {"model": {"weights": str(path)}, "data": {"source": str(data)}, "run": {"steps": 2}}
    return recipes.validate(recipes.merge(tree, sections))


def test_fine_tuning_keeps_rows_of_known_classes(tmp_path) -> None:
    """By name, wherever they stand; the rest of the network is the file's."""
    from pixelwise.training.prepare import prepare
    from tests.training_stand_ins import CLASSES, make_squares

    data = make_squares(tmp_path / "data", train=2, val=1)
    path = mmseg_file(tmp_path, classes=("sky", CLASSES[2], CLASSES[0]))
    parts = prepare(recipe_from(path, data), quiet=True)
    assert parts.classes == tuple(CLASSES)
    state = read_checkpoint(path).state
    own = parts.system.state_dict()
    last = state["decode_head.conv_seg.weight"]
    assert torch.equal(own["classify.weight"][0], last[2])
    assert torch.equal(own["classify.weight"][2], last[1])
    assert not any(torch.equal(own["classify.weight"][1], row) for row in last)
    assert torch.equal(own["fuse.conv.weight"], state["decode_head.bottleneck.conv.weight"])
    assert "reused 2 of 3 classes by name" in parts.notes[0]
    assert parts.input.mean == (123.675, 116.28, 103.53)


def test_a_recipe_may_name_the_row(tmp_path) -> None:
    from pixelwise.training.prepare import prepare
    from tests.training_stand_ins import make_squares

    data = make_squares(tmp_path / "data", train=2, val=1)
    path = mmseg_file(tmp_path)
    parts = prepare(recipe_from(path, data, model={"name": "pspnet_resnet101"}), quiet=True)
    assert parts.name == "pspnet_resnet101"
    with pytest.raises(ConversionError, match="unet of mmseg"):
        prepare(recipe_from(path, data, model={"name": "unet"}), quiet=True)


@pytest.mark.slow
def test_training_from_a_coco_style_file_improves(tmp_path) -> None:
    """A Mask R-CNN of 90 classes under torchvision's names learns nuclei."""
    from pathlib import Path

    data = Path(__file__).parents[1] / "benchmarks" / "data" / "nuclei.yaml"
    if not (data.parent / "../../../shared/data/nuclei").exists():
        pytest.skip("no nuclei data")
    path = torchvision_file(tmp_path, num_classes=90)
    run = pw.train(
        {"weights": str(path), "anchor_sizes": (8, 16, 32, 64, 128)},
        data={"source": str(data), "limit": 4, "batch_size": 2, "crop": (128, 128), "workers": 0},
        steps=60,
        out=tmp_path / "run",
        quiet=True,
        optim={"name": "adamw", "lr": 1e-3, "warmup_steps": 5, "grad_clip": 5.0},
        log={"every_steps": 10, "pictures": 0},
    )
    rows = [json.loads(line) for line in (run.out / "metrics.jsonl").read_text().splitlines()]
    losses = [row["train/loss"] for row in rows if "train/loss" in row]
    assert losses[-1] < 0.7 * losses[0]
    assert checkpoint.read_header(run.last)["classes"] == ["nucleus"]
    assert "reused 0 of 1 classes by name" in (run.out / "log.txt").read_text()
