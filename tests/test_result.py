"""Result: what it says, choosing objects, drawing and saving."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pixelwise import atomic
from pixelwise.errors import DataError, UsageError
from pixelwise.result import Objects, Result
from pixelwise.types import InstancePrediction, SemanticPrediction
from tests.prediction_stand_ins import islands, scene, threshold, write_scene


@pytest.fixture(scope="module")
def found() -> Result:
    return islands().predict(scene(), score_thresh=0.2)


def test_repr_is_one_line(found: Result) -> None:
    fixed = {"read": 1.0, "prepare": 2.0, "network": 30.4, "decode": 7.9}
    timed = Result(path=None, size=found.size, classes=found.classes, times=fixed,
                   instances=found.instances)  # fmt: skip
    assert repr(timed) == "2 grey, 1 red, 41 ms"
    assert repr(timed[:0]) == "no objects, 41 ms"
    assert repr(timed.filter(classes="red")) == "1 red, 41 ms"


def test_repr_of_a_label_map_names_shares() -> None:
    result = threshold().predict(
        np.pad(np.full((50, 100, 3), 255, np.uint8), ((0, 50), (0, 0), (0, 0)))
    )
    assert repr(result).startswith("50% dark, 50% bright, ")
    assert len(result) == 2
    with pytest.raises(UsageError, match="no single objects"):
        result[0]


@pytest.mark.parametrize(
    ("index", "names", "why"),
    [
        (0, ["red"], "one position"),
        (-1, ["grey"], "from the end"),
        (slice(1, None), ["grey", "grey"], "a slice"),
        ([2, 0], ["grey", "red"], "positions, in that order"),
        (np.array([True, False, True]), ["red", "grey"], "truth values"),
        (torch.tensor([1]), ["grey"], "a tensor"),
        ([], [], "nothing"),
    ],
)
def test_choosing(found: Result, index, names: list[str], why: str) -> None:
    chosen = found[index]
    assert chosen.instances is not None
    assert chosen.instances.names == names, why
    assert len(chosen.instances.masks) == len(chosen) == len(names), why


def test_objects_stay_a_prediction_with_names(found: Result) -> None:
    objects = found.instances
    assert isinstance(objects, InstancePrediction)
    assert isinstance(objects.select(torch.tensor([1])), InstancePrediction)
    assert [o.names for o in objects] == [["red"], ["grey"], ["grey"]]
    assert [float(o.scores[0]) for o in objects] == sorted(objects.scores.tolist(), reverse=True)
    with pytest.raises(IndexError):
        objects[3]


@pytest.mark.parametrize(
    ("conditions", "names"),
    [
        ({"classes": ["grey"]}, ["grey", "grey"]),
        ({"score": 0.7}, ["red", "grey"]),
        ({"area": (100, 200)}, ["red"]),
        ({"classes": "grey", "score": 0.7, "area": (0, 400)}, ["grey"]),
        ({"score": 1.1}, []),
    ],
)
def test_filter(found: Result, conditions: dict, names: list[str]) -> None:
    assert found.filter(**conditions).instances.names == names


def test_filter_refuses_an_unknown_class(found: Result) -> None:
    with pytest.raises(UsageError, match="'cat'"):
        found.filter(classes=["cat"])


def test_areas_dense_and_polygons(found: Result) -> None:
    objects = found.instances
    assert objects.areas.tolist() == [180, 336, 50]
    assert objects.dense().sum((1, 2)).tolist() == [180, 336, 50]
    exterior, holes = objects.polygons()[1][0]
    assert (exterior.min(0).tolist(), exterior.max(0).tolist()) == ([40, 30], [60, 50])
    assert len(holes) == 1
    assert (holes[0].min(0).tolist(), holes[0].max(0).tolist()) == ([46, 36], [54, 44])


def test_a_result_without_objects_is_still_a_result() -> None:
    empty = islands().predict(np.zeros((20, 20, 3), np.uint8))
    assert len(empty) == 0
    assert empty
    assert empty.plot().shape == (20, 20, 3)
    assert empty.instances.polygons() == []
    assert empty.cutouts() == []


def test_cutouts_are_transparent_outside_the_mask(found: Result) -> None:
    ring = found.cutouts()[1]
    assert ring.shape == (20, 20, 4)
    assert ring[0, 0].tolist() == [200, 200, 200, 255]
    assert ring[10, 10].tolist() == [0, 0, 0, 0]
    assert found.cutouts(margin_px=2)[1].shape == (24, 24, 4)
    # The faint square lies 5 px below the upper border.
    assert found.cutouts(margin_px=9)[2].shape == (5 + 5 + 9, 9 + 10 + 9, 4)


def test_save_writes_picture_and_json(tmp_path: Path) -> None:
    result = islands().predict(write_scene(tmp_path / "in" / "a.jpg"))
    overlay, document = result.save(tmp_path / "out" / "deep")
    assert overlay == tmp_path / "out" / "deep" / "a.png"
    assert document == tmp_path / "out" / "deep" / "a.json"
    with Image.open(overlay) as picture:
        assert picture.size == (80 * 4, 60 * 4)  # small pictures are enlarged
    again = Result.from_dict(json.loads(document.read_text()))
    assert again.classes == ("red", "grey")
    assert again.image().shape == (60, 80, 3)  # read from its path
    assert not list(tmp_path.rglob("*.part"))


def test_save_never_overwrites_its_source(tmp_path: Path) -> None:
    path = write_scene(tmp_path / "a.png")
    before = path.read_bytes()
    with pytest.raises(UsageError, match="source itself"):
        islands().predict(path).save(tmp_path)
    assert path.read_bytes() == before


def test_a_failed_save_leaves_the_old_files_whole(tmp_path, monkeypatch) -> None:
    result = islands().predict(scene())
    overlay, _ = result.save(tmp_path)
    before = overlay.read_bytes()

    def full(path: Path, content: object) -> None:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(atomic, "write", full)
    with pytest.raises(OSError, match="No space left") as caught:
        islands().predict(np.zeros_like(scene())).save(tmp_path)
    assert caught.value.filename == str(overlay)
    assert overlay.read_bytes() == before


def test_save_of_an_unknown_format(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"'voc'.*coco, yolo"):
        islands().predict(scene()).save(tmp_path, formats=["voc"])
    assert not list(tmp_path.iterdir())


def test_pixels_that_were_not_kept() -> None:
    labels = SemanticPrediction(labels=torch.zeros(4, 4, dtype=torch.uint8))
    result = Result(path="a.png", size=(4, 4), classes=("a",), semantic=labels)
    with pytest.raises(DataError, match="not kept"):
        result.plot()
    assert result.plot(image=np.zeros((4, 4), np.uint8), with_text=False).shape == (4, 4, 3)


def test_notebooks_get_a_png(found: Result) -> None:
    assert found._repr_png_().startswith(b"\x89PNG")


def test_objects_of_a_prediction_keep_mask_scores(found: Result) -> None:
    from dataclasses import replace

    objects = found.instances
    ranked = Objects.of(replace(objects, mask_scores=objects.scores * 0.5), found.classes)
    assert torch.equal(ranked[1:].mask_scores, objects.scores[1:] * 0.5)
