"""The head of FCOS: towers, shared convolutions, scales per level, the prior."""

import pytest
import torch
from torch import nn

from pixelwise.nn.backbones import build_backbone
from pixelwise.nn.fpn import OneStageFPN
from pixelwise.nn.tower_head import TowerHead

TOWERS = {"category": {"classify": 3}, "box": {"regress": 4, "centerness": 1}}


def levels() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, 6, n, n, generator=generator) for n in (8, 4, 2)]


def test_outputs_of_every_level() -> None:
    head = TowerHead(6, 8, TOWERS, levels=3, convs=2)
    maps = head(levels())
    assert {name: [tuple(x.shape) for x in found] for name, found in maps.items()} == {
        name: [(2, count, n, n) for n in (8, 4, 2)]
        for name, count in (("classify", 3), ("regress", 4), ("centerness", 1))
    }


def test_every_class_starts_at_the_prior() -> None:
    head = TowerHead(6, 8, TOWERS, levels=3)
    probs = head(levels())["classify"][0].sigmoid()
    torch.testing.assert_close(probs.mean(), torch.tensor(0.01), rtol=0.05, atol=0)
    assert head.towers["box"].outputs["centerness"].bias.item() == 0


def test_only_scaled_outputs_follow_their_level() -> None:
    head = TowerHead(6, 8, TOWERS, levels=3, scaled=("regress",))
    plain = head(levels())
    with torch.no_grad():
        head.scales["regress"][1].fill_(3.0)
    scaled = head(levels())
    for name, before in plain.items():
        for level, (a, b) in enumerate(zip(before, scaled[name], strict=True)):
            factor = 3 if (name, level) == ("regress", 1) else 1
            torch.testing.assert_close(factor * a, b)


def test_shared_convolutions_come_before_all_towers() -> None:
    """With no convolutions of their own, the towers are single layers on the shared ones."""
    head = TowerHead(6, 8, TOWERS, levels=3, convs=0, shared_convs=3)
    found = head(levels())
    hidden = head.shared(levels()[0])
    assert torch.equal(found["regress"][0], head.towers["box"].outputs["regress"](hidden))
    assert torch.equal(found["classify"][0], head.towers["category"].outputs["classify"](hidden))
    assert len([m for m in head.modules() if isinstance(m, nn.GroupNorm)]) == 3


@pytest.mark.parametrize(
    ("backbone", "expected"), [("resnet50", 32_244_250), ("resnet101", 51_184_154)]
)
def test_published_parameter_counts(backbone: str, expected: int) -> None:
    """Of FCOS with 80 classes; frozen norms do not count."""
    with torch.device("meta"):
        body = build_backbone(backbone, levels=(3, 4, 5), norm="frozen")
        towers = {"category": {"classify": 80}, "box": {"regress": 4, "centerness": 1}}
        parts = [
            body,
            OneStageFPN(body.channels, 256),
            TowerHead(256, 256, towers, levels=5, scaled=("regress",)),
        ]
    assert sum(p.numel() for part in parts for p in part.parameters()) == expected
