"""Checkpoints of PSPNet and U-Net at other depths, widths and class counts than the fixtures'."""

from typing import Any

import pytest
import torch

from pixelwise.convert import import_checkpoint, origins
from pixelwise.convert.rules import invert, translate
from pixelwise.errors import ConversionError
from pixelwise.systems import create

MMSEG_PSP = {"align_corners": False, "backbone_style": "v1c", "aux_width": 64}
SMP_PSP = {
    "backbone_style": "smp",
    "output_stride": 32,
    "level": 3,
    "with_mean_norm": False,
    "map_place": "last",
    "head_kernels": (1, 3),
    "dropout": 0.2,
    "aux_weight": 0.0,
}
MMSEG_UNET = {
    "padding": "same",
    "upsample": "bilinear",
    "norm": "batch",
    "dropout": 0.0,
    "head_width": 24,
}
SMP_UNET = {
    "padding": "same",
    "upsample": "nearest",
    "norm": "batch",
    "dropout": 0.0,
    "head_kernel": 3,
    "backbone_style": "smp",
}
AUX = {"aux_weight": 0.4, "aux_width": 5}
FIVE = (40, 32, 24, 16, 8)

# (origin, system, what differs from the system's defaults, what the file cannot say)
CASES: list[tuple[str, str, dict[str, Any], dict[str, Any]]] = [
    ("semseg", "pspnet", {"backbone": "resnet152", "branch_width": 512, "aux_width": 256}, {}),
    ("semseg", "pspnet", {"backbone": "resnet50", "branch_width": 64, "aux_weight": 0.0}, {}),
    (
        "semseg",
        "pspnet",
        {"branch_width": 32, "in_channels": 1, "bins": (1, 2, 3), "aux_width": 8},
        {},
    ),
    ("mmseg", "pspnet", {**MMSEG_PSP, "backbone": "resnet101", "branch_width": 512}, {}),
    (
        "mmseg",
        "pspnet",
        {**MMSEG_PSP, "backbone": "resnet18", "branch_width": 128, "head_width": 128},
        {},
    ),
    (
        "mmseg",
        "pspnet",
        {**MMSEG_PSP, "backbone": "resnet50", "branch_width": 16, "backbone_style": "v1d"},
        {},
    ),
    ("smp", "pspnet", {**SMP_PSP, "backbone": "resnet18", "branch_width": 32}, {}),
    ("smp", "pspnet", {**SMP_PSP, "backbone": "resnet50", "branch_width": 128}, {}),
    (
        "smp",
        "pspnet",
        {**SMP_PSP, "backbone_style": None, "branch_width": 10, "head_width": 64},
        {"backbone": "test_resnet"},
    ),
    (
        "mmseg",
        "unet",
        {**MMSEG_UNET, "widths": (8, 16, 32), "decoder_widths": (16, 8)} | AUX,
        {},
    ),
    ("mmseg", "unet", {**MMSEG_UNET, "num_classes": 5, "in_channels": 4}, {}),
    ("smp", "unet", {**SMP_UNET, "backbone": "resnet18", "decoder_widths": FIVE}, {}),
    ("smp", "unet", {**SMP_UNET, "backbone": "resnet50", "decoder_widths": FIVE}, {}),
    (
        "smp",
        "unet",
        {
            **SMP_UNET,
            "backbone": "resnet34",
            "decoder_widths": FIVE[:4],
            "levels": (1, 2, 3, 4),
            "in_channels": 1,
        },
        {},
    ),
    (
        "smp",
        "unet",
        {**SMP_UNET, "backbone_style": None, "decoder_widths": FIVE, "levels": (2, 3, 4, 5)},
        {"backbone": "test_convnext"},
    ),
]


def title(case: tuple[str, str, dict[str, Any], dict[str, Any]]) -> str:
    origin, name, config, unsaid = case
    return f"{origin}-{name}-{(config | unsaid).get('backbone', 'default')}"


@pytest.mark.parametrize("case", CASES, ids=title)
def test_there_and_back(case: tuple[str, str, dict[str, Any], dict[str, Any]]) -> None:
    """The config is read from keys and shapes, and every tensor comes back to where it was."""
    origin, name, config, unsaid = case
    with torch.device("meta"):
        ours = create(name, **config, **unsaid)
        rules = origins(name)[origin].rules
        rules = rules(ours.cfg) if callable(rules) else rules
        state = ours.state_dict()
        theirs = invert(rules, state)
        found = import_checkpoint(theirs, origin=origin, name=name, **unsaid)
    assert found.system.cfg == ours.cfg
    assert len(theirs) == len(state)
    back = translate(rules, theirs, state)
    assert not back.dropped
    assert all(back.state[key] is value for key, value in state.items())


@pytest.mark.parametrize("origin", ["semseg", "mmseg", "smp"])
def test_another_projects_file_is_refused(origin: str) -> None:
    with pytest.raises(ConversionError, match="is it of this origin and system"):
        import_checkpoint({"fc.weight": torch.zeros(2, 2)}, origin=origin, name="pspnet")


@pytest.mark.parametrize("name", ["pspnet", "unet"])
def test_other_encoders_of_smps_own_are_named_as_the_reason(name: str) -> None:
    state = {"encoder.features.0.0.weight": torch.zeros(8, 3, 3, 3)}
    with pytest.raises(ConversionError, match=r"ResNets and ResNeXts.*tu-NAME"):
        import_checkpoint(state, origin="smp", name=name)
