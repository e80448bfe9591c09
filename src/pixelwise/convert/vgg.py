"""VGG and AlexNet keys of other projects: classifiers of ImageNet, whole or without their end.

The destinations are `conv1_1` … of the backbone, and `fc6`, `fc7` of the fully connected layers as
convolutions (`nn.fully_convolutional`); one that only wants the backbone translates partially.
"""

from __future__ import annotations

import re

from pixelwise.convert.rules import Drop, Rename, Reshape, Rule
from pixelwise.convert.shapes import State
from pixelwise.errors import ConversionError
from pixelwise.nn.backbones.vgg import VGGS, convolution_names

_CELLS = 7  # rows and columns of VGG's last map on an image of 224 x 224


def torchvision_vgg_rules(name: str = "vgg16") -> list[Rule]:
    """Rules for torchvision's and timm's naming; the latter has its first two fc as convolutions.

    Args:
        name: row of `VGGS`.
    """
    return [
        *(
            Rename(rf"features\.{i}\.", f"{conv}.")
            for i, conv in zip(sequence_indices(name), convolution_names(name), strict=True)
        ),
        as_convolution(r"classifier\.0\.weight$", "fc6.weight", kernel=_CELLS),
        Rename(r"classifier\.0\.bias$", "fc6.bias"),
        as_convolution(r"classifier\.3\.weight$", "fc7.weight", kernel=1),
        Rename(r"classifier\.3\.bias$", "fc7.bias"),
        Rename(r"pre_logits\.fc1\.", "fc6."),
        Rename(r"pre_logits\.fc2\.", "fc7."),
        Drop(r"classifier\.6\.", "classifier of ImageNet"),
        Drop(r"head\.fc\.", "classifier of ImageNet"),
    ]


def caffe_classifier_rules() -> list[Rule]:
    """Rules for Caffe's layer names, which are ours too."""
    return [
        Rename(r"conv(\d)", r"conv\1"),
        Rename(r"fc6\.bias$", "fc6.bias"),
        Rename(r"fc7\.bias$", "fc7.bias"),
        # 4096 x 25088 of VGG or 4096 x 9216 of AlexNet; convolutions already in a segmenter's file.
        as_convolution(r"fc6\.weight$", "fc6.weight"),
        as_convolution(r"fc7\.weight$", "fc7.weight"),
        Drop(r"fc8(_\w+)?\.", "classifier of ImageNet"),
    ]


def as_convolution(pattern: str, to: str, *, kernel: int | None = None) -> Reshape:
    """A fully connected layer's weight as the convolution that computes the same.

    The input of the layer is a map flattened in the order channel, row, column.

    Args:
        pattern: of the source key, as in `Rename`.
        to:     of the destination.
        kernel: side of the map that the layer sees; 1 behind another such layer. None: 7 or 6 where
            the inputs are 512 or 256 maps of that side (VGG, AlexNet), else 1.

    Source: FCN (arXiv:1411.4038), section 3.1.
    """

    def shape(source: tuple[int, ...]) -> tuple[int, ...]:
        if len(source) == 4:
            return source
        side = kernel or {512 * 49: 7, 256 * 36: 6}.get(source[1], 1)
        return source[0], source[1] // side**2, side, side

    return Reshape(pattern, to, shape, lambda ours: (ours[0], ours[1] * ours[2] * ours[3]))


def sequence_indices(name: str, *, first: int = 1, last: int = 5) -> list[int]:
    """Numbers of a VGG's convolutions in a sequence of convolutions, ReLUs and pools.

    Args:
        name:  row of `VGGS`.
        first: group with which the sequence begins.
        last:  group with which it ends.
    """
    numbers: list[int] = []
    at = 0
    for count in VGGS[name].convs[first - 1 : last]:
        numbers += [at + 2 * i for i in range(count)]
        at += 2 * count + 1
    return numbers


def infer_caffe_vgg(state: State) -> str:
    """Which VGG a state dict under Caffe's layer names holds, from the names of its convolutions.

    Raises:
        ConversionError: none that we know.
    """
    found = [m[1] for key in state if (m := re.match(r"(conv[1-5]_\d+)\.weight$", key))]
    for name, plan in VGGS.items():
        same = sorted(found) == sorted(convolution_names(name))
        if same and state["conv1_1.weight"].shape[0] == plan.width:
            return name
    raise ConversionError(
        f"no known VGG has the convolutions {', '.join(found) or '(none)'}; known are "
        f"{', '.join(VGGS)}"
    )
