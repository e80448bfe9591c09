"""What all networks of segmentation_models.pytorch share: the encoder."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from pixelwise.convert.backbones import infer_xception, xception_rules
from pixelwise.convert.resnet import infer_resnet, torchvision_rules
from pixelwise.convert.rules import Rename, Rule, prefixed
from pixelwise.convert.shapes import State
from pixelwise.errors import ConversionError
from pixelwise.nn.backbones.xception import XCEPTIONS

_TIMM = "encoder.model."  # prefix of timm's encoders, "tu-NAME"


def encoder_rules(backbone: str, style: str | None, *, level: int = 5) -> list[Rule]:
    """From "encoder." to "backbone.".

    Args:
        backbone: name of our backbone.
        style:    what `infer_encoder` found; None for an encoder of timm.
        level:    of the deepest map that is used; smp's own ResNets are stored whole.
    """
    if backbone in XCEPTIONS:
        return prefixed(xception_rules(separator="_"), _TIMM, "backbone.")
    if style is None:
        return [Rename(r"encoder\.model\.", "backbone.body.")]
    return prefixed(torchvision_rules(stages=level - 1), "encoder.", "backbone.")


def infer_encoder(state: State) -> dict[str, Any]:
    """The config fields `backbone`, `backbone_style` and `in_channels`, as far as keys tell.

    The name of another encoder of timm ("tu-NAME") is not in the file and must be passed.

    Raises:
        ConversionError: one of smp's own encoders that is no ResNet.
    """
    kernels = [v for key, v in state.items() if key.startswith("encoder.") and v.ndim == 4]
    result: dict[str, Any] = {"in_channels": kernels[0].shape[1]} if kernels else {}
    if "encoder.layer1.0.conv1.weight" in state:
        return {**result, "backbone": infer_resnet(state, "encoder."), "backbone_style": "smp"}
    if kernels and not any(key.startswith(_TIMM) for key in state):
        raise ConversionError(
            "of segmentation_models.pytorch's own encoders the ResNets and ResNeXts can be read, "
            "and all of timm's (tu-NAME); this is another one"
        )
    if "encoder.model.stem_0.conv.weight" in state:
        with suppress(ConversionError):  # cut short, it does not say which one it is
            name = infer_xception(state, _TIMM, separator="_")
            return {**result, "backbone": name, "backbone_style": "timm"}
    return {**result, "backbone_style": None}
