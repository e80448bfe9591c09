"""`pixelwise models`."""

import json
from pathlib import Path

import pytest

from pixelwise import catalogue
from pixelwise.cli import run
from pixelwise.systems import SYSTEMS
from tests.prediction_stand_ins import stand_in_checkpoints


@pytest.fixture
def own_catalogue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = Path(stand_in_checkpoints(tmp_path, monkeypatch)["instance"])
    row = {
        "name": "islands_tiny.cells", "system": "islands", "source": f"package:{path.name}",
        "sha256": "", "classes": ["red", "grey"], "licence": "CC0-1.0", "data_licence": "CC0-1.0",
        "commercial": "yes", "task": "instance", "metrics": {"mask_ap50": 0.75},
        "metrics_source": "pixelwise val",
    }  # fmt: skip
    document = {"aliases": {"cells": row["name"]}, "models": [row]}
    (tmp_path / "catalogue.json").write_text(json.dumps(document))
    monkeypatch.setattr(catalogue, "_folder", lambda: tmp_path)
    catalogue._read.cache_clear()
    yield str(path)
    catalogue._read.cache_clear()


def test_list_shows_models_and_systems(own_catalogue, capsys) -> None:
    assert run(["models", "list"]) == 0
    out = capsys.readouterr().out
    assert "islands_tiny.cells" in out
    assert "mask_ap50 0.750" in out
    assert "(short: cells)" in out
    assert all(name in out for name in SYSTEMS)


def test_list_as_json_by_pattern_and_task(own_catalogue, capsys) -> None:
    assert run(["models", "list", "mask_rcnn*", "--task", "instance", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["models"] == []
    names = [row["name"] for row in document["systems"]]
    assert names == [name for name in SYSTEMS if name.startswith("mask_rcnn")]
    assert run(["models", "list", "--task", "semantic", "--pretrained", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"models": [], "systems": []}
    assert run(["models", "list", "*cells*", "--json"]) == 0
    (model,) = json.loads(capsys.readouterr().out)["models"]
    assert (model["alias"], model["metrics"]) == ("cells", {"mask_ap50": 0.75})


def test_list_counts_what_others_publish_and_lists_it_on_request(capsys) -> None:
    assert run(["models", "list"]) == 0
    out = capsys.readouterr().out
    assert "mmseg " in out
    assert "detectron2_coco" not in out
    assert run(["models", "list", "*_coco*", "--task", "instance", "--commercial"]) == 0
    out = capsys.readouterr().out
    assert "mask_rcnn_resnet50_fpn.detectron2_coco_3x" in out
    assert "mmdet" not in out  # nothing is said about the licence of its weights
    assert "Systems" not in out
    arguments = ["models", "list", "*_coco*", "--task", "instance", "--commercial", "--json"]
    assert run(arguments) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["systems"] == []
    assert {m["commercial"] for m in document["models"]} == {"yes"}
    assert {m["task"] for m in document["models"]} == {"instance"}


def test_info_of_a_published_model_downloads_nothing(capsys, monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("PIXELWISE_HOME", str(tmp_path))
    assert run(["models", "info", "mask_rcnn_resnet50_fpn.torchvision_coco", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["sha256"], facts["downloaded"]) == ("bf2d0c1e", False)
    assert facts["file"].startswith(str(tmp_path))
    assert facts["input"]["resize"]["short_side"] == 800
    assert list(tmp_path.iterdir()) == []


def test_info_leaves_out_what_nobody_states(capsys, monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("PIXELWISE_HOME", str(tmp_path))
    assert run(["models", "info", "mask_rcnn_resnet50_fpn.detectron2_coco_3x"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    said = {words[0]: words[1:] for words in lines}
    assert said["downloaded"] == ["no"]
    assert "md5" in said
    assert not {"sha256", "mirrors", "by_hand", "alias"} & set(said)
    assert [words for words in lines if words[1:] in ([], ["none"])] == [["metrics:"], ["input:"]]


def test_list_without_matches_and_a_wrong_task(capsys) -> None:
    assert run(["models", "list", "zzz*"]) == 0
    assert "nothing matches" in capsys.readouterr().out
    assert run(["models", "list", "--task", "both"]) == 2


@pytest.mark.parametrize("name", ["cells", "islands_tiny.cells"])
def test_info_of_an_embedded_model(own_catalogue, capsys, name: str) -> None:
    assert run(["models", "info", name, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["licence"], facts["task"], facts["system"]) == ("CC0-1.0", "instance", "islands")
    assert run(["models", "info", name]) == 0
    out = capsys.readouterr().out
    assert "mask_ap50" in out
    assert "red, grey" in out


def test_info_of_a_checkpoint(own_catalogue, capsys) -> None:
    assert run(["models", "info", own_catalogue, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["file"] == own_catalogue
    assert facts["classes"] == ["red", "grey"]


def test_info_of_a_system_counts_its_parameters(capsys) -> None:
    assert run(["models", "info", "mask_rcnn_resnet50_fpn", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert 40e6 < facts["parameters"] < 50e6
    assert facts["config"]["backbone"] == "resnet50"


def test_info_of_nothing(capsys) -> None:
    assert run(["models", "info", "mask_rccn"]) == 4
    assert "mask_rccn" in capsys.readouterr().err
