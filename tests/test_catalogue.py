"""The catalogue's data: true to its schema, and nothing in it that our converters cannot build."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import pytest
from pydantic import BaseModel, ConfigDict, Field, StringConstraints

import pixelwise as pw
from pixelwise import catalogue
from pixelwise.convert import origins
from pixelwise.systems import SYSTEMS, configure

FOLDER = catalogue._folder() / "published"
FILES = sorted(p for p in FOLDER.glob("*.json") if p.name != "datasets.json")
Commercial = Literal["yes", "no", "unclear"]
Text = Annotated[str, StringConstraints(min_length=1)]
Url = Annotated[str, StringConstraints(pattern=r"^https://[^\s]+$")]
Share = Annotated[float, Field(gt=0, lt=1)]


class Row(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: Annotated[str, StringConstraints(pattern=r"^[a-z0-9_]+\.[a-z0-9_]+$")]
    system: Text
    data: Text
    source: Url
    mirrors: list[Url] = []
    by_hand: str = ""
    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{8,64}$")] = ""
    md5: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{6,32}$")] = ""
    metrics: dict[Text, Share]
    listed_in: Text = ""
    config: dict[Text, Any] = {}
    input: dict[str, Any]


class Origin(BaseModel):
    model_config = ConfigDict(extra="forbid")

    origin: Text
    project: Url
    code_licence: Text
    licence: Text
    commercial: Commercial
    listed_in: Text
    models: list[Row]


class Dataset(BaseModel):
    model_config = ConfigDict(extra="forbid")

    licence: Text
    commercial: Commercial
    terms: Url = ""
    classes: list[Text]


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_a_file_follows_the_schema(path: Path) -> None:
    origin = Origin.model_validate(read(path))
    assert origin.origin == path.stem
    names = [row.name for row in origin.models]
    assert names == sorted(set(names))
    files = [row.source for row in origin.models if not row.by_hand]  # else it may be a folder
    assert len(set(files)) == len(files)
    for row in origin.models:
        assert not (row.sha256 and row.md5)


def test_datasets_follow_the_schema_and_name_each_class_once() -> None:
    used = {row["data"] for path in FILES for row in read(path)["models"]}
    for name, row in read(FOLDER / "datasets.json").items():
        data = Dataset.model_validate(row)
        assert len(set(data.classes)) == len(data.classes), name
        assert data.commercial == "unclear" or data.terms, name  # an answer needs a source
        assert name in used, name


def test_names_are_those_of_one_model() -> None:
    names = [entry.name for entry in catalogue.entries()]
    assert len(set(names)) == len(names)
    assert not set(names) & (set(SYSTEMS) | set(catalogue.aliases()))


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_every_row_can_be_built_by_its_converter(path: Path) -> None:
    """System, origin, classes, settings and input are ones that we have."""
    rows = catalogue.entries(f"*.{path.stem.replace('-', '_')}_*")
    assert len(rows) == len(read(path)["models"])
    for entry in rows:
        assert entry.origin == path.stem
        assert entry.origin in origins(entry.system), entry.name
        assert entry.input is not None
        assert entry.input.channels == 3
        settings = {"num_classes": len(entry.classes), **entry.config}
        configure(entry.system, settings)


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_hash_prefixes_are_those_in_the_addresses(path: Path) -> None:
    """The publishers put the hash's beginning into the file's name."""
    for row in read(path)["models"]:
        prefix = row.get("sha256") or row.get("md5")
        if prefix and len(prefix) < 32:
            assert re.search(rf"[-_]{prefix}\.\w+$", urlsplit(row["source"]).path), row["name"]


def test_commercial_use_is_the_stricter_answer_of_weights_and_data() -> None:
    datasets = read(FOLDER / "datasets.json")
    strict = ("yes", "unclear", "no")
    for path in FILES:
        for row in read(path)["models"]:
            entry = catalogue.find(row["name"])
            assert entry is not None
            both = (read(path)["commercial"], datasets[row["data"]]["commercial"])
            assert entry.commercial == max(both, key=strict.index)


def test_known_facts() -> None:
    """A few rows as their publishers print them."""
    entry = catalogue.find("mask_rcnn_resnet50_fpn.torchvision_coco")
    assert entry is not None
    assert entry.source.endswith("/maskrcnn_resnet50_fpn_coco-bf2d0c1e.pth")
    assert dict(entry.metrics) == {"box_ap": 0.379, "mask_ap": 0.346}
    assert len(entry.classes) == 90
    entry = catalogue.find("pspnet_resnet50_v1c.mmseg_cityscapes_512x1024_40k")
    assert entry is not None
    assert (entry.sha256, entry.commercial) == ("2966598c", "no")
    assert dict(entry.metrics) == {"miou": 0.7785, "miou_ms_flip": 0.7918}
    entry = catalogue.find("mask_rcnn_resnet50_fpn.mmdet_coco_1x_caffe")
    assert entry is not None
    assert entry.config == {"backbone_style": "caffe"}
    assert entry.input is not None
    assert entry.input.channel_order == "bgr"


def test_the_documentation_counts_right() -> None:
    """The table of origins in docs/checkpoints.md: converters, and how many models are listed."""
    text = (Path(__file__).parents[1] / "docs" / "checkpoints.md").read_text(encoding="utf-8")
    table = text.split("## By origin")[1].split("## Another origin")[0]
    rows = dict(re.findall(r"^\| `([\w-]+)` \| .*? \| (\d+) \|", table, re.M))
    listed = Counter(e.origin for e in catalogue.entries() if not catalogue.is_embedded(e))
    assert {name: int(count) for name, count in rows.items() if int(count)} == dict(listed)
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    assert f"{listed.total()} published checkpoints" in readme
    known = {origin for name in SYSTEMS for origin in origins(name)}
    assert known == set(rows)


def test_names_of_systems_and_of_models() -> None:
    nuclei = ["mask_rcnn_efficientnet_lite0_fpn.nuclei"]
    assert pw.list_systems("*nuclei*", pretrained=True, task="instance") == nuclei
    assert pw.list_models("*nuclei*", task="instance") == nuclei
    assert pw.list_systems("mask_rcnn_resnet50*")[0] == "mask_rcnn_resnet50_fpn"
    assert pw.list_systems("*nuclei*") == []


def test_filters() -> None:
    assert {e.task for e in catalogue.entries("*_coco*", task="instance")} == {"instance"}
    allowed = catalogue.entries(commercial=True)
    assert all(e.commercial == "yes" for e in allowed)
    assert len(allowed) < len(catalogue.entries())
