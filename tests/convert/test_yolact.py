"""Variants of the released YOLACTs: other depths, classes, widths, anchors, intervals."""

from typing import Any

import pytest
import torch

from pixelwise.convert import import_checkpoint
from pixelwise.convert.rules import Rule, invert, translate
from pixelwise.convert.yolact import ORIGINS, anchors_last
from pixelwise.errors import ConversionError
from pixelwise.systems import SYSTEMS, create
from pixelwise.systems.yolact import YOLACT, YOLACTConfig

PP = {"scales_per_octave": 3, "square_anchors": False, "with_rescoring": True}
PASCAL = {"num_classes": 20, "anchor_sizes": (32, 64, 128, 256, 512), "square_anchors": False}
MMDET = {"conventions": "mmdet", "anchor_ratios": (0.5, 1.0, 2.0), "square_anchors": False}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "resnet50": ("yolact", {"backbone": "resnet50"}),
    "resnet101": ("yolact", {"backbone": "resnet101", "channels": 32, "prototypes": 8}),
    "resnet152": ("yolact", {"backbone": "resnet152", "num_classes": 7}),
    "darknet53": ("yolact", {"backbone": "darknet53"}),
    "pascal": ("yolact", {"backbone": "resnet50", **PASCAL}),
    "pascal_darknet53": ("yolact", {"backbone": "darknet53", **PASCAL}),
    "grey": ("yolact", {"backbone": "resnet50", "in_channels": 1}),
    "pp_resnet50": ("yolact", {"backbone": "resnet50", "deform_interval": 1, **PP}),
    "pp_resnet101": ("yolact", {"backbone": "resnet101", "deform_interval": 3, **PP}),
    "pp_every_second": ("yolact", {"backbone": "resnet50", "deform_interval": 2, **PP}),
    "mmdet_resnet50": ("mmdet", {"backbone": "resnet50", **MMDET}),
    "mmdet_resnet101": ("mmdet", {"backbone": "resnet101", "num_classes": 5, **MMDET}),
}


def rules_of(origin: str, cfg: YOLACTConfig) -> list[Rule]:
    rules = ORIGINS[origin].rules
    assert callable(rules)
    return list(rules(cfg))


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_is_read_from_its_shapes(name: str) -> None:
    """On the meta device: keys and shapes are all that a converter reads."""
    origin, changes = VARIANTS[name]
    with torch.device("meta"):
        net = create("yolact", **{"channels": 8, "prototypes": 4, **changes})
    # Orders of rows are tensors of their own, so values are needed there.
    state = {k: torch.zeros(v.shape, dtype=v.dtype) for k, v in net.state_dict().items()}
    theirs = invert(rules_of(origin, net.cfg), state)
    assert len(theirs) == len(state)
    found = ORIGINS[origin].infer(theirs)
    assert found == {key: getattr(net.cfg, key) for key in found}
    with torch.device("meta"):
        again = YOLACT(YOLACTConfig(**found))
    moved = translate(rules_of(origin, again.cfg), theirs, again.state_dict())
    assert moved.state.keys() == state.keys()
    assert not moved.dropped


@pytest.mark.parametrize("origin", ["yolact", "mmdet"])
def test_values_come_back_and_the_background_is_last(origin: str) -> None:
    torch.manual_seed(0)
    extra = MMDET if origin == "mmdet" else {}
    net = create("yolact", backbone="resnet50", channels=8, prototypes=4, num_classes=2, **extra)
    theirs = invert(rules_of(origin, net.cfg), net.state_dict())
    key = "prediction_layers.0.conf_layer.bias" if origin == "yolact" else "bbox_head.conv_cls.bias"
    # Three anchors of background and two classes each, numbered by 10 * anchor + class.
    background = 0 if origin == "yolact" else 2
    theirs[key] = torch.tensor([10.0 * a + c for a in range(3) for c in range(3)])
    again = import_checkpoint(theirs, origin=origin, name="yolact").system
    bias = again.get_submodule("head.outputs.classify").bias
    classes = [c for c in range(3) if c != background] + [background]
    assert bias.tolist() == [10.0 * a + c for c in classes for a in range(3)]
    others = {k: v for k, v in net.state_dict().items() if "classify.bias" not in k}
    assert all(torch.equal(again.state_dict()[k], v) for k, v in others.items())


def test_anchors_last_is_a_permutation() -> None:
    assert anchors_last(2)(6) == [0, 3, 1, 4, 2, 5]
    assert anchors_last(2, first=1)(6) == [1, 4, 2, 5, 0, 3]


def test_old_names_in_released_files_are_left_out() -> None:
    with torch.device("meta"):
        net = create("yolact", backbone="resnet50", channels=8, prototypes=4)
    state = {k: torch.zeros(v.shape, dtype=v.dtype) for k, v in net.state_dict().items()}
    theirs = invert(rules_of("yolact", net.cfg), state)
    old = {
        "backbone.layer1.0.conv1.weight": torch.zeros(64, 64, 1, 1),
        "fpn.downsample_layers.2.weight": torch.zeros(8, 8, 3, 3),
    }
    moved = translate(rules_of("yolact", net.cfg), theirs | old, state)
    assert set(moved.dropped) == set(old)


def test_another_network_is_refused() -> None:
    with pytest.raises(ConversionError, match="has no"):
        import_checkpoint({"backbone.conv1.weight": torch.zeros(1)}, origin="yolact", name="yolact")


def test_every_row_is_fed_as_its_origin_does() -> None:
    entry = ORIGINS["yolact"]
    assert callable(entry.input)
    ours = ("_lite0", "_rt")
    for row in (name for name in SYSTEMS if name.startswith("yolact") and not name.endswith(ours)):
        assert entry.input(SYSTEMS[row].config) == SYSTEMS[row].input
