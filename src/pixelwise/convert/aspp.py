"""ASPP in torchvision's naming, which segmentation_models.pytorch took over."""

from __future__ import annotations

from pixelwise.convert.rules import Rename, Rule
from pixelwise.nn.aspp import Conv


def torchvision_aspp_rules(source: str, rates: int, conv: Conv) -> list[Rule]:
    r"""Rules from a list `convs` (1x1, atrous ones, image pool) and `project` to our `context.`.

    Args:
        source: pattern of the module's prefix, such as r"decoder\.aspp\.".
        rates:  number of atrous branches.
        conv:   their form: "plain", or "bare_separable" (smp).
    """
    rules: list[Rule] = [
        Rename(source + r"convs\.0\.0\.", "context.pointwise.conv."),
        Rename(source + r"convs\.0\.1\.", "context.pointwise.norm."),
        Rename(source + rf"convs\.{rates + 1}\.1\.", "context.pool.project.conv."),
        Rename(source + rf"convs\.{rates + 1}\.2\.", "context.pool.project.norm."),
        Rename(source + r"project\.0\.", "context.project.conv."),
        Rename(source + r"project\.1\.", "context.project.norm."),
    ]
    for i in range(rates):
        branch, ours = source + rf"convs\.{i + 1}\.", f"context.atrous.{i}."
        if conv == "plain":
            rules += [
                Rename(branch + r"0\.", ours + "conv."),
                Rename(branch + r"1\.", ours + "norm."),
            ]
        else:
            rules += [
                Rename(branch + r"0\.0\.", ours + "depthwise.conv."),
                Rename(branch + r"0\.1\.", ours + "pointwise.conv."),
                Rename(branch + r"1\.", ours + "pointwise.norm."),
            ]
    return rules
