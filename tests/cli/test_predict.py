"""`pixelwise predict` as a user types it."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import pixelwise as pw
from pixelwise.cli import run
from pixelwise.prediction.augmented import Augmentation
from pixelwise.result import Result
from tests.prediction_stand_ins import stand_in_checkpoints, write_scene


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    return stand_in_checkpoints(tmp_path / "models", monkeypatch)


def test_one_picture(models, capsys) -> None:
    write_scene(Path("in/a.jpg"))
    assert run(["predict", models["instance"], "in/a.jpg"]) == 0
    out = capsys.readouterr().out
    assert "a.jpg: 1 red, 1 grey," in out
    assert "wrote predictions/a.png" in out
    assert "network" in out  # the time of each stage
    result = Result.from_dict(json.loads(Path("predictions/a.json").read_text()))
    assert result.instances.names == ["red", "grey"]


def test_folder_with_names_that_differ_only_in_their_suffix(models, capsys) -> None:
    for name in ("a.jpg", "a.png", "sub/a.png"):
        write_scene(Path("in") / name)
    code = run(["predict", models["semantic"], "in", "--out", "o", "--format", "labels", "--json"])
    assert code == 0
    captured = capsys.readouterr()
    document = json.loads(captured.out)  # nothing else on stdout
    assert document["errors"] == []
    assert document["task"] == "semantic"
    pictures = [r["picture"] for r in document["results"]]
    assert pictures == ["o/a.png", "o/a.png.png", "o/sub/a.png"]
    assert all(Path(p).exists() for p in pictures)
    assert set(document["results"][0]["times_ms"]) == {"read", "prepare", "network", "decode"}
    assert document["results"][0]["shares"]["bright"] == pytest.approx(336 / 4800, abs=0.01)
    with Image.open("o/sub/a.labels.png") as labels:
        assert np.unique(np.asarray(labels)).tolist() == [0, 1]


def test_a_bad_file_in_the_middle(models, capsys) -> None:
    write_scene(Path("in/a.png"))
    Path("in/b.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    write_scene(Path("in/c.png"))
    assert run(["predict", models["instance"], "in", "--json"]) == 3
    captured = capsys.readouterr()
    document = json.loads(captured.out)
    assert [Path(r["path"]).name for r in document["results"]] == ["a.png", "c.png"]
    assert [Path(e["path"]).name for e in document["errors"]] == ["b.png"]
    assert captured.err.count("in/b.png") == 1
    assert Path("predictions/c.json").exists()


def test_formats_tiles_score_and_augmentation(models, capsys) -> None:
    write_scene(Path("a.png"))
    words = ["predict", models["instance"], "a.png", "--score", "0.2", "--format", "coco,geojson"]
    assert run([*words, "--tile", "40", "--overlap", "0.5", "--quiet"]) == 0
    captured = capsys.readouterr()
    assert captured.out == ""
    assert len(json.loads(Path("predictions/a.coco.json").read_text())) == 3
    assert len(json.loads(Path("predictions/a.geojson").read_text())["features"]) == 3
    assert run([*words, "--tta", "--out", "tta"]) == 0
    assert "2 grey, 1 red" in capsys.readouterr().out


def test_scales_mirror_images_and_crf_are_those_of_python(models) -> None:
    write_scene(Path("a.png"))
    seg = pw.load(models["semantic"], device="cpu")
    for words, options in (
        (["--scales", "0.5,1"], {"tta": (0.5, 1.0)}),
        (["--scales", "0.5", "--no-flip"], {"tta": Augmentation(scales=(0.5,), flip=False)}),
        (["--tta", "--no-flip"], {"tta": replace(Augmentation.default("semantic"), flip=False)}),
        (["--crf"], {"crf": True}),
        (["--crf-preset", "deeplabv1", "--tta"], {"crf": "deeplabv1", "tta": True}),
        (["--tile", "32", "--crf"], {"tile": 32, "crf": True}),
        (["--tile", "32", "--seams", "semseg"], {"tile": 32, "seams": "semseg"}),
        (["--tile", "32", "--overlap", "0.4"], {"tile": 32, "overlap": 0.4}),
    ):
        command = ["predict", models["semantic"], "a.png", "--format", "labels", "--quiet", *words]
        assert run(command) == 0, words
        with Image.open("predictions/a.labels.png") as found:
            expected = seg.predict("a.png", **options).semantic.labels
            assert np.array_equal(np.asarray(found), expected.numpy()), words


def test_save_probs(models) -> None:
    write_scene(Path("a.png"))
    assert run(["predict", models["semantic"], "a.png", "--save-probs"]) == 0
    assert np.load("predictions/a.probs.npz")["probs"].shape == (2, 60, 80)


def test_several_sources(models, capsys) -> None:
    for name in ("a.png", "b.png", "c/d.png"):
        write_scene(Path(name))
    assert run(["predict", models["instance"], "a.png", "c", "none.png", "b.png"]) == 3
    captured = capsys.readouterr()
    assert "3 pictures" in captured.out
    assert "1 could not be read" in captured.out
    assert "none.png: no such file" in captured.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--format", "voc"], "choose from coco"),
        (["--score", "50"], "score_thresh must be 0..1"),
        (["--tile", "3"], "at least 16"),
        (["--overlap", "2"], "overlap must be"),
        (["--device", "cuda:77"], "--device cpu"),
        (["--batch-size", "0"], "batch_size must be at least 1"),
        (["--save-probs"], "label maps"),
        (["--crf"], "crf refines label maps"),
        (["--crf-preset", "deeplabv2"], "crf refines label maps"),
        (["--scales", "half"], "--scales 'half'"),
        (["--scales", "0"], "positive"),
        (["--no-flip"], "add --tta or --scales"),
        (["--seams", "none", "--tile", "64"], "choose one of blended"),
        (["--scroe", "0.4"], "No such option"),
    ],
)
def test_wrong_options(models, capsys, words: list[str], message: str) -> None:
    write_scene(Path("a.png"))
    assert run(["predict", models["instance"], "a.png", *words]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert "Traceback" not in captured.err
    assert not Path("predictions").exists()


def test_interruption_keeps_what_was_done(models, monkeypatch, capsys) -> None:
    for name in ("a.png", "b.png", "c.png"):
        write_scene(Path("in") / name)
    original = Result.save

    def save(self: Result, *words, **options):
        if self.name == "b.png":
            raise KeyboardInterrupt
        return original(self, *words, **options)

    monkeypatch.setattr(Result, "save", save)
    assert run(["predict", models["instance"], "in"]) == 130
    assert sorted(p.name for p in Path("predictions").iterdir()) == ["a.json", "a.png"]
    assert "interrupted" in capsys.readouterr().err
