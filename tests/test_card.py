"""Model cards of the catalogue and of checkpoints."""

import pytest
import yaml

from pixelwise import card, catalogue, checkpoint
from pixelwise.cli import run
from pixelwise.errors import ModelError
from pixelwise.spec import IMAGENET_RGB
from pixelwise.systems import create


def front(text: str) -> dict:
    """The header between the two lines of dashes."""
    assert text.startswith("---\n")
    return yaml.safe_load(text.split("---\n")[1])


@pytest.mark.parametrize(
    ("name", "licence", "says"),
    [
        ("nuclei", {"license": "cc0-1.0"}, ["unclear", "mask_ap | 0.6187", "shorter side 448 px"]),
        (
            "mask_rcnn_resnet50_fpn.detectron2_coco_3x",
            {"license": "cc-by-sa-3.0"},
            ["allowed", "md5 f10217", "BGR; shorter side 800 px, at most 1333", "mask_ap | 0.372"],
        ),
        (
            "mask_rcnn_resnet50_fpn.torchvision_coco",
            {"license": "other"},
            ["unclear", "sha256 bf2d0c1e", "BSD-3-Clause", "RGB; shorter side 800 px"],
        ),
        (
            "yolact_resnet50.mmdet_coco",
            {"license": "other"},
            ["550x550 px, whatever the aspect", "mmdet 3.3.0"],
        ),
        ("pspnet_resnet50_v1c.mmseg_cityscapes_512x1024_40k", {}, ["not allowed", "Cityscapes"]),
    ],
)
def test_cards_of_the_catalogue(name, licence, says, monkeypatch, capsys) -> None:
    monkeypatch.setenv("PIXELWISE_OFFLINE", "1")  # a card downloads nothing
    text = card.card(name)
    header = front(text)
    assert header.items() >= licence.items()
    assert header["library_name"] == "pixelwise"
    assert all(part in text for part in says), text
    assert run(["models", "card", name]) == 0
    assert capsys.readouterr().out.strip() == text.strip()


def test_every_entry_has_a_card(monkeypatch) -> None:
    for entry in catalogue.entries()[::7]:
        text = card.card(entry.name)
        assert front(text)["tags"][1] == f"{entry.task}-segmentation"
        assert entry.licence in text


def test_card_of_a_checkpoint(tmp_path) -> None:
    path = tmp_path / "mine.safetensors"
    checkpoint.save(
        path,
        create("unet", num_classes=2, widths=(4, 8), decoder_widths=(4,)),
        name="unet",
        classes=("sky", "ground"),
        input=IMAGENET_RGB,
        metrics={"miou": 0.5},
        licence="Apache-2.0",
        source={"project": "https://example.org", "commercial": "no", "sha256": "ab12"},
    )
    text = card.card(path)
    assert front(text)["license"] == "apache-2.0"
    for part in (
        "# mine",
        "2 classes",
        "sky, ground",
        "https://example.org",
        "not allowed",
        "ab12",
    ):
        assert part in text
    assert run(["models", "card", str(path), "--out", str(tmp_path / "README.md")]) == 0
    assert (tmp_path / "README.md").read_text() == text


def test_card_of_nothing(capsys) -> None:
    with pytest.raises(ModelError, match="no model or file"):
        card.card("nothing_at_all")
    assert run(["models", "card", "nothing_at_all"]) == 4
