"""Segmenter: sources in, results out; tiles, batches, options, loading by name."""

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import pixelwise as pw
from pixelwise import catalogue
from pixelwise.errors import DataError, ModelError, UsageError
from pixelwise.predict import load, resolve_device
from pixelwise.prediction.sources import Frame
from pixelwise.result import Result
from tests.prediction_stand_ins import (
    FIXED,
    islands,
    scene,
    stand_in_checkpoints,
    threshold,
    write_scene,
)


def test_label_map_of_the_original_size() -> None:
    result = threshold().predict(scene())
    assert result.semantic is not None
    assert result.semantic.labels.shape == (60, 80)
    expected = scene().mean(2) > 127.5
    assert np.array_equal(result.semantic.labels.numpy(), expected)
    assert set(result.times) == {"read", "prepare", "network", "decode"}
    assert all(ms >= 0 for ms in result.times.values())


def test_objects_best_first_above_the_score() -> None:
    result = islands().predict(scene())
    assert result.instances is not None
    assert result.instances.names == ["red", "grey"]  # the faint one scores 0.39
    assert result.instances.boxes.tolist() == [[10, 8, 25, 20], [40, 30, 60, 50]]
    assert len(islands().predict(scene(), score_thresh=0.2)) == 3


@pytest.mark.parametrize(
    ("source", "why"),
    [
        (str, "a path as text"),
        (lambda p: p, "a path"),
        (lambda p: p.read_bytes(), "the bytes of a file"),
        (Image.open, "a Pillow image"),
        (lambda p: np.asarray(Image.open(p)), "an array"),
    ],
)
def test_single_sources_agree(tmp_path: Path, source, why: str) -> None:
    path = write_scene(tmp_path / "a.png")
    result = islands().predict(source(path))
    assert isinstance(result, Result), why
    assert len(result) == 2, why


def test_several_sources_give_a_list_and_a_stream(tmp_path: Path) -> None:
    for name in ("a.png", "sub/b.png"):
        write_scene(tmp_path / name)
    results = islands().predict(tmp_path)
    assert [r.name for r in results] == ["a.png", "sub/b.png"]
    stream = islands().predict([tmp_path / "a.png", scene()], stream=True)
    assert next(stream).path == str(tmp_path / "a.png")
    assert next(stream).path is None
    with pytest.raises(StopIteration):
        next(stream)


def test_a_stream_reads_nothing_ahead(tmp_path: Path) -> None:
    write_scene(tmp_path / "a.png")
    (tmp_path / "b.png").write_text("not a picture")
    stream = islands().predict(tmp_path, stream=True)
    assert len(next(stream)) == 2
    with pytest.raises(DataError, match=r"b\.png"):
        next(stream)


def test_a_list_does_not_hold_its_pictures(tmp_path: Path) -> None:
    path = write_scene(tmp_path / "a.png")
    (result,) = islands().predict([path])
    assert callable(result.picture)
    assert np.array_equal(result.image(), scene())
    write_scene(path, height=50)
    with pytest.raises(DataError, match="predict again"):
        result.image()


def test_bad_pictures_by_on_error(tmp_path: Path) -> None:
    paths = [
        write_scene(tmp_path / "a.png"),
        tmp_path / "none.png",
        write_scene(tmp_path / "c.png"),
    ]
    with pytest.raises(DataError, match=r"none\.png"):
        islands().predict(paths)
    with pytest.warns(UserWarning, match=r"none\.png"):
        results = islands().predict(paths, on_error="skip")
    assert [r.name for r in results] == ["a.png", "c.png"]
    seen: list[str] = []

    def collect(frame: Frame, error: DataError) -> None:
        seen.append(f"{frame.path}: {error}")

    assert len(islands().predict(paths, on_error=collect)) == 2
    assert len(seen) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(DataError, match="left out"):
            islands().predict(paths[1], on_error="skip")


def test_batches_hold_pictures_of_one_size() -> None:
    seg = threshold()
    pictures = [scene(), scene(), scene(), scene(40, 40), scene(40, 40), scene()]
    together = seg.predict(pictures, batch_size=2)
    assert seg.system.batches == [2, 1, 2, 1]
    alone = [threshold().predict(p) for p in pictures]
    for one, other in zip(together, alone, strict=True):
        assert torch.equal(one.semantic.labels, other.semantic.labels)


def test_resized_input_comes_back_in_original_pixels() -> None:
    result = islands(input=FIXED).predict(scene())
    boxes = result.instances.boxes
    assert torch.allclose(boxes[0], torch.tensor([10.0, 8, 25, 20]), atol=1.5)


@pytest.mark.parametrize(("tile", "overlap"), [(32, 0.25), (37, 0.5), (64, 0.0), (500, 0.25)])
def test_tiles_of_label_maps_equal_the_whole(tile: int, overlap: float) -> None:
    whole = threshold().predict(scene())
    tiled = threshold().predict(scene(), tile=tile, overlap=overlap)
    assert torch.equal(tiled.semantic.labels, whole.semantic.labels)


@pytest.mark.parametrize("tile", [32, 40, 500])
def test_tiles_of_objects_equal_the_whole(tile: int) -> None:
    whole = islands().predict(scene())
    tiled = islands().predict(scene(), tile=tile, overlap=0.5)
    assert tiled.instances.names == whole.instances.names
    assert np.array_equal(tiled.instances.dense(), whole.instances.dense())


def test_probabilities_on_request() -> None:
    assert threshold().predict(scene()).semantic.probs is None
    probs = threshold().predict(scene(), with_probs=True).semantic.probs
    assert probs.shape == (2, 60, 80)
    assert torch.allclose(probs.sum(0), torch.ones(60, 80))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"score_tresh": 0.5}, "did you mean 'score_thresh'"),
        ({"score_thresh": 50}, r"0\.\.1"),
        ({"overlap": 1.0}, r"overlap"),
        ({"tile": 4}, "at least 16"),
        ({"batch_size": 0}, "at least 1"),
        ({"tta": (0.5, -1.0)}, "positive"),
        ({"with_probs": True, "tile": 64}, "drop one"),
    ],
)
def test_wrong_options(options: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        threshold().predict(scene(), **options)


def test_probabilities_of_objects_are_refused() -> None:
    with pytest.raises(UsageError, match="label maps"):
        islands().predict(scene(), with_probs=True)


@pytest.mark.parametrize("device", ["cuda:99", "gpu", "cpux"])
def test_wrong_device(device: str) -> None:
    with pytest.raises(UsageError, match="cpu"):
        resolve_device(device)


def test_auto_device() -> None:
    expected = "cuda" if torch.cuda.is_available() else "cpu"
    assert resolve_device("auto").type == resolve_device(None).type == expected


def test_load_from_file_run_folder_and_convenience(tmp_path, monkeypatch) -> None:
    path = Path(stand_in_checkpoints(tmp_path, monkeypatch)["instance"])
    seg = load(path, device="cpu")
    assert (seg.name, seg.task, seg.classes) == ("islands", "instance", ("red", "grey"))
    assert "2 classes: red, grey" in repr(seg)
    run = tmp_path / "run" / "weights"
    run.mkdir(parents=True)
    path.rename(run / "best.safetensors")
    assert len(pw.predict(tmp_path / "run", scene(), device="cpu")) == 2
    assert len(pw.predict(seg, scene(), score_thresh=0.95)) == 1


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nope.safetensors", "no such checkpoint"),
        ("some/run", "no such checkpoint"),
        ("deeplabv3plus", "without weights: train it"),
        ("zzzz", "pixelwise models list"),
    ],
)
def test_unknown_models(name: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        load(name)


def test_empty_folder_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"weights/best\.safetensors"):
        load(tmp_path)


@pytest.fixture
def own_catalogue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = Path(stand_in_checkpoints(tmp_path, monkeypatch)["instance"])
    row = {
        "name": "islands_tiny.cells", "system": "islands", "source": f"package:{path.name}",
        "sha256": "", "classes": ["red", "grey"], "licence": "CC0-1.0", "data_licence": "CC0-1.0",
        "commercial": "yes", "task": "instance", "metrics": {"mask_ap": 0.5},
        "metrics_source": "pixelwise val", "note": "unknown keys are for readers",
    }  # fmt: skip
    document = {"aliases": {"cells": row["name"]}, "models": [row]}
    (tmp_path / "catalogue.json").write_text(json.dumps(document))
    monkeypatch.setattr(catalogue, "_folder", lambda: tmp_path)
    catalogue._read.cache_clear()
    yield path
    catalogue._read.cache_clear()


def test_embedded_models_by_name_and_alias(own_catalogue: Path) -> None:
    assert load("islands_tiny.cells").classes == load("cells").classes == ("red", "grey")
    assert [e.name for e in catalogue.entries("*cells*", task="instance")] == ["islands_tiny.cells"]
    assert catalogue.entries(task="semantic") == []
    with pytest.raises(ModelError, match=r"did you mean .*cells"):
        load("cell")
    own_catalogue.unlink()
    with pytest.raises(ModelError, match="missing from this installation"):
        load("cells")


def test_shipped_catalogue_is_consistent() -> None:
    names = {entry.name for entry in catalogue.entries()}
    assert set(catalogue.aliases().values()) <= names
    for entry in filter(catalogue.is_embedded, catalogue.entries()):
        seg = load(entry.name, device="cpu")
        assert (seg.classes, seg.task, seg.name) == (entry.classes, entry.task, entry.system)
        assert catalogue.file_of(entry).stat().st_size <= 15e6
