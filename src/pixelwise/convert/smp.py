"""What all networks of segmentation_models.pytorch share: the encoder."""

from __future__ import annotations

from typing import Any

from pixelwise.convert.backbones import infer_xception, xception_rules
from pixelwise.convert.resnet import infer_resnet, torchvision_rules
from pixelwise.convert.rules import Rename, Rule, prefixed
from pixelwise.convert.shapes import State, shape_of
from pixelwise.nn.backbones.xception import XCEPTIONS


def encoder_rules(backbone: str, style: str | None, *, level: int = 5) -> list[Rule]:
    """From "encoder." to "backbone.".

    Args:
        backbone: name of our backbone.
        style:    what `infer_encoder` found; None for an encoder of timm.
        level:    of the deepest map that is used; smp's own ResNets are stored whole.
    """
    if backbone in XCEPTIONS:
        return prefixed(xception_rules(separator="_"), "encoder.model.", "backbone.")
    if style is None:
        return [Rename(r"encoder\.model\.", "backbone.body.")]
    return prefixed(torchvision_rules(stages=level - 1), "encoder.", "backbone.")


def infer_encoder(state: State) -> dict[str, Any]:
    """The config fields `backbone`, `backbone_style` and `in_channels`, as far as keys tell.

    The name of another encoder of timm ("tu-NAME") is not in the file and must be passed.
    """
    if "encoder.layer1.0.conv1.weight" in state:
        return {
            "backbone": infer_resnet(state, "encoder."),
            "backbone_style": "smp",
            "in_channels": shape_of(state, "encoder.conv1.weight")[1],
        }
    if "encoder.model.stem_0.conv.weight" in state:
        return {
            "backbone": infer_xception(state, "encoder.model.", separator="_"),
            "backbone_style": "timm",
            "in_channels": shape_of(state, "encoder.model.stem_0.conv.weight")[1],
        }
    return {"backbone_style": None}
