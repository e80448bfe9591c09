"""Checkpoints of other depths, widths, class counts and forms than those of the fixtures."""

from typing import Any

import pytest
import torch

from pixelwise.convert import import_checkpoint, origins
from pixelwise.convert.rules import invert
from pixelwise.errors import ConversionError
from pixelwise.systems import create

INTERPOLATED = {"upsample": "bilinear"}
RELEASED = {"spatial_widths": (64, 64, 64, 128), "aux_weight": 1.0}
WIDE = {  # mmseg's ResNet-50 and ResNet-101
    "spatial_widths": (256, 256, 256, 512),
    "context_width": 512,
    "fusion_width": 1024,
    "head_width": 1024,
    "aux_width": 256,
    "aux_weight": 1.0,
}
MMSEG = {"gate": "norm_relu", "backbone_style": "mmseg", "dropout": 0.1}
BARE = {"spatial_widths": (8, 8, 8, 16), "aux_weight": 0.0}

VARIANTS: list[tuple[str, str, dict[str, Any]]] = [
    ("zijundeng", "gcn", {"backbone": "resnet50", "kernel": 15, "num_classes": 19, **INTERPOLATED}),
    ("zijundeng", "gcn", {"backbone": "resnet101", "kernel": 3, "num_classes": 2, **INTERPOLATED}),
    ("zijundeng", "gcn", {"backbone": "resnet18", "kernel": 9, "in_channels": 4, **INTERPOLATED}),
    ("coincheung", "bisenet", {"num_classes": 171, "gate": "norm", **RELEASED}),
    ("coincheung", "bisenet", {"num_classes": 4, "gate": "norm", "in_channels": 1, **BARE}),
    ("mmseg", "bisenet", {"num_classes": 150, "backbone": "resnet50", **MMSEG, **WIDE}),
    ("mmseg", "bisenet", {"num_classes": 7, "backbone": "resnet101", **MMSEG, **RELEASED}),
    ("mmseg", "bisenet", {"num_classes": 7, **MMSEG, **BARE, "backbone_style": "v1c"}),
    ("mmseg", "bisenet", {"num_classes": 7, **MMSEG, **BARE, "backbone_style": "v1d"}),
    (
        "efficientfcn",
        "efficientfcn",
        {"num_classes": 150, "backbone": "resnet101", "codewords": 600},
    ),
    (
        "efficientfcn",
        "efficientfcn",
        {"codewords": 64, "codeword_width": 128, "compress_width": 96, "backbone": "resnet50"},
    ),
    ("efficientfcn", "efficientfcn", {"num_classes": 60, "backbone": "resnet50", "in_channels": 1}),
]


def foreign(origin: str, name: str, settings: dict[str, Any]) -> tuple[Any, dict]:
    """A system of ours, and its weights under the origin's names."""
    system = create(name, **settings)
    entry = origins(name)[origin]
    rules = entry.rules(system.cfg) if callable(entry.rules) else entry.rules
    return system, invert(rules, system.state_dict())


@pytest.mark.parametrize(("origin", "name", "settings"), VARIANTS)
def test_shapes_tell_all_settings(origin: str, name: str, settings: dict[str, Any]) -> None:
    with torch.device("meta"):
        system, state = foreign(origin, name, settings)
        imported = import_checkpoint(state, origin=origin, name=name)
    assert len(state) == len(system.state_dict())
    assert {key: getattr(imported.system.cfg, key) for key in settings} == settings
    assert not imported.translation.dropped
    assert sorted(imported.translation.sources.values()) == sorted(state)


@pytest.mark.parametrize(
    ("origin", "name", "settings"), [VARIANTS[i] for i in (2, 4, 8)], ids=["gcn", "cc", "mmseg"]
)
def test_every_weight_comes_back(origin: str, name: str, settings: dict[str, Any]) -> None:
    system, state = foreign(origin, name, settings)
    back = import_checkpoint(state, origin=origin, name=name).system.state_dict()
    for key, value in system.state_dict().items():
        assert torch.equal(back[key], value), key


@pytest.mark.parametrize(
    ("origin", "name", "missing"),
    [
        ("zijundeng", "gcn", "gcm1.conv_l1.weight"),
        ("coincheung", "bisenet", "conv_out.conv_out.weight"),
        ("mmseg", "bisenet", "decode_head.conv_seg.weight"),
        ("efficientfcn", "efficientfcn", "head.conv_pred3.1.weight"),
    ],
)
def test_another_checkpoint_is_refused(origin: str, name: str, missing: str) -> None:
    with pytest.raises(ConversionError, match=missing):
        import_checkpoint({"a.weight": torch.zeros(1)}, origin=origin, name=name)


@pytest.mark.parametrize(
    ("classes", "red"), [(19, 0.3257), (150, 0.49343230), (171, 0.46962251), (2, 0.3257)]
)
def test_coincheung_normalises_each_data_set_with_its_own_statistics(classes, red) -> None:
    with torch.device("meta"):
        settings = {"num_classes": classes, "gate": "norm", **BARE}
        _, state = foreign("coincheung", "bisenet", settings)
        imported = import_checkpoint(state, origin="coincheung", name="bisenet")
    assert imported.input.mean[0] == red
    assert imported.input.channel_order == "rgb"
