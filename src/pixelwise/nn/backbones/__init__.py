"""Feature extractors: the papers' own, and any of timm's by name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from torch import Tensor

from pixelwise.errors import UsageError
from pixelwise.nn.backbones import alexnet, darknet, mobilenet_v3, resnet, vgg, xception, xception39
from pixelwise.nn.norm import Norm

__all__ = ["Backbone", "build_backbone"]


class Backbone(Protocol):
    """What every feature extractor offers, besides being an `nn.Module`.

    channels: of each returned map.  strides: input pixels per cell of each returned map.
    """

    channels: tuple[int, ...]
    strides: tuple[int, ...]

    def __call__(self, images: Tensor) -> list[Tensor]: ...  # noqa: D102

    def freeze(self, stages: int) -> None: ...  # noqa: D102

    def requires_grad_(self, requires_grad: bool = True) -> Any: ...  # noqa: D102


def build_backbone(
    name: str,
    *,
    in_channels: int = 3,
    output_stride: int = 32,
    levels: Sequence[int] = (2, 3, 4, 5),
    norm: Norm | str | None = "batch",
    style: str | None = None,
    **knobs: Any,
) -> Any:
    """A feature extractor by name.

    ResNets, ResNeXts, Xceptions, VGGs, AlexNet, DarkNet-53 and torchvision's MobileNetV3 are our
    own, since checkpoints depend on details that timm does not offer; any other name is timm's, and
    "timm/resnet50" asks for timm's version of one of ours.

    Args:
        name:          "resnet18" … "resnext101_64x4d", "xception39|41|65|71",
                       "vgg11|13|16|19", "alexnet", "darknet53", "mobilenet_v3_large", or a model of
                       timm.
        in_channels:   of the images; 3 for colour.
        output_stride: input pixels per cell of the deepest map: 8, 16 or 32.
        levels:        which maps: level n has nominal stride 2^n; a dilated one has less.
        norm:          see `make_norm`; networks of timm keep their own kind, VGGs and AlexNet have
                       none.
        style:         named set of knobs of the project whose checkpoints shall fit, see
                       the `STYLES` of each family; None for "pytorch" (ResNets), "tf" (Xceptions),
                       "caffe" (VGGs) or "aligned" (AlexNet).
        knobs:         single arguments of the family's class, such as `multi_grid`, `norm_eps`;
                       they win over the style.

    Returns:
        A `Backbone`; its maps come finest first, [B, channels, ceil(H/stride), ceil(W/stride)].

    Raises:
        UsageError: unknown name or style, or something that the family cannot do.
    """
    common: dict[str, Any] = {
        "in_channels": in_channels,
        "output_stride": output_stride,
        "levels": levels,
        "norm": norm,
    }
    if name in resnet.RESNETS:
        return resnet.ResNet(name, **common, **_knobs(resnet.STYLES, style or "pytorch", knobs))
    if name in xception.XCEPTIONS:
        return xception.Xception(name, **common, **_knobs(xception.STYLES, style or "tf", knobs))
    if tuple(knobs.get("multi_grid", (1, 1, 1))) == (1, 1, 1):
        knobs.pop("multi_grid", None)
    if name in vgg.VGGS:
        return vgg.VGG(name, **common, **_knobs(vgg.STYLES, style or "caffe", knobs))
    if name in mobilenet_v3.MOBILENETS:
        knobs = _knobs(mobilenet_v3.STYLES, style or "plain", knobs)
        return mobilenet_v3.MobileNetV3(name, **common, **knobs)
    if name in darknet.DARKNETS:
        return darknet.DarkNet(name, **common, **_knobs(darknet.STYLES, style or "plain", knobs))
    if name == "alexnet":
        return alexnet.AlexNet(**common, **_knobs(alexnet.STYLES, style or "aligned", knobs))
    if name == "xception39":
        return xception39.Xception39(**common, **_knobs(xception39.STYLES, style or "plain", knobs))
    if knobs or style is not None:
        given = ", ".join([*knobs, *(["style"] if style else [])])
        raise UsageError(
            f"backbone {name!r} comes from timm and does not take {given}; leave it out"
        )
    from pixelwise.nn.backbones.from_timm import TimmBackbone  # timm takes a second to import

    return TimmBackbone(name.removeprefix("timm/"), **common)


def _knobs(styles: dict[str, dict[str, Any]], style: str, knobs: dict[str, Any]) -> dict[str, Any]:
    if style not in styles:
        raise UsageError(f"no backbone style is named {style!r}; choose one of {', '.join(styles)}")
    return {**styles[style], **knobs}
