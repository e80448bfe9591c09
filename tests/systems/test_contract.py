"""What every system of the table promises, at tiny width."""

import json
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pixelwise.export import Passport, export_onnx, export_program, read_passport
from pixelwise.spec import InputSpec
from pixelwise.systems import SYSTEMS, configure, create
from pixelwise.types import (
    IGNORE,
    ImageSize,
    InstancePrediction,
    InstanceTarget,
    MaskCrops,
    SemanticPrediction,
    SemanticTarget,
    System,
)

SIDE = 64
K = 3

# Settings that make a system small enough to train in a test; by class, so a new row needs nothing.
TINY: dict[str, dict[str, Any]] = {
    "BiSeNet": {
        "num_classes": K,
        "backbone": "test_resnet",
        "spatial_widths": (8, 8, 16),
        "context_width": 16,
        "fusion_width": 16,
        "head_width": 16,
        "aux_width": 8,
    },
    "BlendMask": {
        "num_classes": K,
        "backbone": "test_resnet",
        "channels": 40,
        "levels": 4,
        "head_convs": 1,
        "shared_convs": 1,
        "bottom_convs": 1,
        "bottom_width": 8,
        "attention_side": 4,
        "mask_side": 8,
        "score_thresh": 0.0,
        "pre_nms": 20,
        "detections_per_image": 8,
    },
    "DeepLabV1": {
        "num_classes": K,
        "backbone": "test_vgg",
        "fc_width": 16,
        "fc_rate": 2,
        "branch_width": 8,
    },
    "DeepLabV2": {"num_classes": K, "backbone": "test_resnet", "rates": (1, 2)},
    "DeepLabV3": {
        "num_classes": K,
        "backbone": "test_resnet",
        "backbone_style": None,
        "aspp_width": 16,
        "aux_weight": 0.4,
    },
    "DeepLabV3Plus": {
        "num_classes": K,
        "backbone": "test_resnet",
        "backbone_style": None,
        "multi_grid": (1, 1, 1),
        "aspp_width": 16,
        "decoder_width": 16,
        "low_level_width": 8,
        "aux_weight": 0.4,
    },
    "EfficientFCN": {
        "num_classes": K,
        "backbone": "test_resnet",
        "compress_width": 16,
        "codewords": 8,
        "codeword_width": 16,
    },
    "Embedding": {
        "num_classes": K,
        "backbone": "test_resnet",
        "decoder_widths": (16, 16, 16),
        "embedding_dims": 4,
        "min_cells": 2,
        "detections_per_image": 8,
    },
    "FCIS": {
        "num_classes": K,
        "backbone": "test_resnet",
        "parts": 3,
        "mask_side": 9,
        "width": 16,
        "rpn_width": 16,
        "anchor_sizes": (16, 32, 64),
        "proposals": 20,
        "regions_per_image": 12,
        "min_side_px": 2.0,
        "detections_per_image": 8,
    },
    "FCN": {"num_classes": K, "backbone": "test_vgg", "fc_width": 16, "head_width": 16},
    "GCN": {"num_classes": K, "backbone": "test_resnet", "kernel": 5},
    "MaskRCNN": {
        "num_classes": K,
        "backbone": "test_resnet",
        "channels": 16,
        "anchor_sizes": (8, 16, 32, 48, 64),
        "pre_nms": (60, 40),
        "proposals": (40, 20),
        "regions_per_image": 12,
        "detections_per_image": 8,
        "score_thresh": 0.0,
    },
    "MaskScoringRCNN": {
        "num_classes": K,
        "backbone": "test_resnet",
        "channels": 16,
        "anchor_sizes": (8, 16, 32, 48, 64),
        "pre_nms": (60, 40),
        "proposals": (40, 20),
        "regions_per_image": 12,
        "detections_per_image": 8,
        "score_thresh": 0.0,
    },
    "PANet": {
        "num_classes": K,
        "backbone": "test_resnet",
        "channels": 16,
        "anchor_sizes": (8, 16, 32, 48, 64),
        "pre_nms": (60, 40),
        "proposals": (40, 20),
        "regions_per_image": 12,
        "detections_per_image": 8,
        "score_thresh": 0.0,
    },
    "ParseNet": {"num_classes": K, "backbone": "test_vgg", "fc_width": 16, "fc_rate": 2},
    "PolarMask": {
        "num_classes": K,
        "backbone": "test_resnet",
        "backbone_style": None,
        "channels": 16,
        "head_convs": 1,
        "strides": (8, 16, 32),
        "range_bounds": (16, 32),
        "rays": 12,
        "pre_nms": 40,
        "score_thresh": 0.0,
        "detections_per_image": 8,
    },
    "PSPNet": {"num_classes": K, "backbone": "test_resnet", "branch_width": 8, "head_width": 16},
    "RFCN": {
        "num_classes": K,
        "backbone": "test_resnet",
        "parts": 3,
        "width": 16,
        "rpn_width": 16,
        "anchor_sizes": (16, 32, 64),
        "proposals": 20,
        "regions_per_image": 12,
        "min_side_px": 2.0,
        "detections_per_image": 8,
    },
    "SOLO": {
        "num_classes": K,
        "backbone": "test_resnet",
        "channels": 16,
        "head_width": 16,
        "head_convs": 2,
        "kernel_width": 16,
        "grids": (8, 7, 6, 4, 3),
        "scale_ranges": ((1, 16), (8, 24), (16, 40), (24, 64), (48, 2048)),
        "cells_per_level": 20,
        "score_thresh": 0.005,
        "final_thresh": 0.0,
    },
    "UNet": {"num_classes": K, "widths": (8, 8, 16), "decoder_widths": (8, 8)},
    "YOLACT": {
        "num_classes": K,
        "backbone": "test_resnet",
        "channels": 16,
        "prototypes": 8,
        "anchor_sizes": (8, 16, 24, 32, 48),
        "square_anchors": True,
        "score_thresh": 0.0,
        "pre_nms": 20,
        "detections_per_image": 8,
        "masks_per_image": 20,
    },
}
# A row whose form needs more than its class's settings, or keeps its own backbone.
TINY_ROWS: dict[str, dict[str, Any]] = {
    "deeplabv1_efficientnet_lite0": {"backbone": "test_resnet"},
    "deeplabv2_vgg16": {"backbone": "test_vgg", "branch_width": 16},
    "fcn32s_alexnet": {"backbone": "alexnet"},
    "fcn32s_alexnet_pad100": {"backbone": "alexnet"},
    "fcn_resnet50": {"backbone": "test_resnet"},
    "fcn_resnet50_v1c": {"backbone": "resnet18"},
    "fcn_resnet101_v1c": {"backbone": "resnet18"},
    "fcn_efficientnet_lite0": {"backbone": "test_resnet"},
    "mask_rcnn_resnet50_fpn_gn": {"backbone": "resnet18"},  # timm keeps its own norms
    "mask_rcnn_resnet50_c4": {"backbone": "resnet18", "anchor_sizes": (8, 16, 32)},
    "mask_rcnn_resnet50_dc5": {"anchor_sizes": (8, 16, 32)},
    "parsenet_efficientnet_lite0": {"backbone": "test_resnet"},
    "unet_resnet34": {"backbone": "test_resnet", "decoder_widths": (16, 16, 8, 8, 8)},
    "unet_efficientnet_lite0": {"backbone": "test_resnet", "decoder_widths": (16, 16, 8, 8, 8)},
    "yolactpp": {"backbone": "resnet50", "square_anchors": False},  # timm's have no deformable form
    "yolactpp_resnet50": {"backbone": "resnet50", "square_anchors": False, "deform_interval": 3},
    "yolactpp_resnet101": {"backbone": "resnet50", "square_anchors": False},
}


def tiny_config(name: str) -> Any:
    kind = SYSTEMS[name].system.__name__
    assert kind in TINY, f"add small settings of {kind} to TINY"
    return configure(name, {**TINY[kind], **TINY_ROWS.get(name, {})})


def distinct_rows() -> list[str]:
    """Rows that are still different at tiny width: those that differ in size alone are one."""
    seen: dict[tuple[type, str], str] = {}
    for name, entry in SYSTEMS.items():
        seen.setdefault((entry.system, repr(tiny_config(name))), name)
    return list(seen.values())


def rows(per_class: int) -> list[Any]:
    """Distinct rows; those after the first few of each class run with the slow tests only."""
    counts: dict[type, int] = {}
    params: list[Any] = []
    for name in distinct_rows():
        kind = SYSTEMS[name].system
        counts[kind] = counts.get(kind, 0) + 1
        marks = [pytest.mark.slow] if counts[kind] > per_class else []
        params.append(pytest.param(name, marks=marks, id=name))
    return params


ROWS = rows(2)


def build(name: str) -> Any:
    torch.manual_seed(0)
    return SYSTEMS[name].system(tiny_config(name))


def picture(seed: int = 0) -> Tensor:
    return torch.randn(3, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))


def semantic_target(kind: str) -> SemanticTarget:
    labels = torch.zeros(SIDE, SIDE, dtype=torch.int64)
    if kind == "empty":
        labels[:] = IGNORE
    elif kind == "normal":
        labels[16:40, 20:50] = 1
        labels[48:] = IGNORE
    else:  # every pixel its own neighbour's stranger
        labels = (torch.arange(SIDE)[:, None] + torch.arange(SIDE)) % K
    return SemanticTarget(labels=labels)


def instance_target(kind: str) -> InstanceTarget:
    boxes = {
        "empty": [],
        "normal": [[4, 6, 30, 40], [28, 20, 60, 56]],
        "crowded": [[x, y, x + 10, y + 9] for x in range(0, 54, 6) for y in range(0, 54, 6)],
    }[kind]
    windows = torch.tensor(boxes, dtype=torch.int64).view(-1, 4)
    crops = MaskCrops((SIDE, SIDE), windows, torch.zeros(0, dtype=torch.uint8))
    pixels = torch.ones(int(crops.areas_of_windows.sum()), dtype=torch.uint8)
    crowd = torch.zeros(len(boxes), dtype=torch.bool)
    if kind == "crowded":
        crowd[-1] = True
    return InstanceTarget(
        boxes=windows.float(),
        labels=torch.arange(len(boxes)) % K,
        masks=MaskCrops((SIDE, SIDE), windows, pixels),
        crowd=crowd,
    )


def target(name: str, kind: str) -> SemanticTarget | InstanceTarget:
    make = semantic_target if SYSTEMS[name].task == "semantic" else instance_target
    return make(kind)


def total(losses: Any) -> Tensor:
    return torch.stack(list(losses.values())).sum()


@pytest.mark.parametrize("name", SYSTEMS)
def test_every_row_builds_with_its_own_settings(name: str) -> None:
    with torch.device("meta"):
        system = SYSTEMS[name].system(SYSTEMS[name].config)
    assert isinstance(system, System)
    assert system.cfg == SYSTEMS[name].config
    assert SYSTEMS[name].input.channels == system.cfg.in_channels
    keys = [name for name, _ in system.named_parameters()]
    for prefix in system.CLASS_ROWS:
        if prefix != "auxiliary.classify":
            assert any(key.startswith(prefix) for key in keys), f"CLASS_ROWS: no {prefix}"


@pytest.mark.parametrize("name", ROWS)
def test_config_survives_json(name: str) -> None:
    values = json.loads(json.dumps(asdict(tiny_config(name))))
    assert create(name, **values).cfg == tiny_config(name)


@pytest.mark.parametrize("name", ROWS)
def test_evaluation_is_deterministic_and_independent_of_the_batch(name: str) -> None:
    system = build(name).eval()
    one, other = picture(1), picture(2)
    with torch.no_grad():
        pair = system(torch.stack([one, other]))
        again = system(torch.stack([one, other]))
        alone = system(other[None])
    for a, b, single in zip(pair, again, alone, strict=True):
        assert torch.equal(a, b)
        torch.testing.assert_close(a[1:], single, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", ["normal", "empty", "crowded"])
@pytest.mark.parametrize("name", ROWS)
def test_losses_are_finite_scalars(name: str, kind: str) -> None:
    system = build(name).train()
    losses = system.loss(torch.stack([picture(1), picture(2)]), [target(name, kind)] * 2)
    assert losses
    for key, value in losses.items():
        assert value.ndim == 0, key
        assert torch.isfinite(value), (key, value)
    total(losses).backward()
    for key, parameter in system.named_parameters():
        assert parameter.grad is None or torch.isfinite(parameter.grad).all(), key


@pytest.mark.parametrize("name", ROWS)
def test_every_trainable_parameter_gets_a_gradient(name: str) -> None:
    system = build(name).train()
    images = torch.stack([picture(1), picture(2)])
    total(system.loss(images, [target(name, "normal"), target(name, "crowded")])).backward()
    silent = [n for n, p in system.named_parameters() if p.requires_grad and p.grad is None]
    assert not silent


@pytest.mark.parametrize("name", rows(1))
def test_thirty_steps_on_one_image_lower_the_loss(name: str) -> None:
    system = build(name).train()
    for module in system.modules():
        if isinstance(module, nn.Dropout | nn.Dropout2d):
            module.p = 0.0
    images, targets = picture(1)[None], [target(name, "normal")]
    optimiser = torch.optim.AdamW(system.parameters(), lr=2e-3)
    losses: list[float] = []
    for _ in range(30):
        loss = total(system.loss(images, targets))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    # Two-stage systems draw their regions anew each step, so means are compared.
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:3]), losses


@pytest.mark.parametrize("name", ROWS)
def test_decoded_predictions_lie_inside_the_original_picture(name: str) -> None:
    system = build(name).eval()
    sizes = [
        ImageSize(original=(81, 47), content=(64, 37), input=(SIDE, SIDE)),
        ImageSize(original=(20, 33), content=(39, 64), input=(SIDE, SIDE)),
    ]
    with torch.no_grad():
        raw = system(torch.stack([picture(1), picture(2)]))
    predictions = system.decode(raw, sizes)
    assert len(predictions) == 2
    for prediction, size in zip(predictions, sizes, strict=True):
        height, width = size.original
        assert prediction.size == size.original
        assert prediction.labels.device.type == "cpu"
        if isinstance(prediction, SemanticPrediction):
            assert int(prediction.labels.max()) < K
            continue
        assert isinstance(prediction, InstancePrediction)
        assert ((prediction.labels >= 0) & (prediction.labels < K)).all()
        assert (prediction.scores.diff() <= 0).all()
        if len(prediction):
            x1, y1, x2, y2 = prediction.boxes.T
            assert ((x1 >= 0) & (y1 >= 0) & (x2 <= width) & (y2 <= height)).all()
        windows = prediction.masks.windows
        assert (windows[:, :2] >= 0).all()
        assert (windows[:, 2:] <= [width, height]).all()


@pytest.mark.parametrize("name", ROWS)
def test_any_size_runs(name: str) -> None:
    system = build(name).eval()
    images = torch.randn(1, 3, 75, 53)
    with torch.no_grad():
        raw = system(images)
    assert system.decode(raw, [ImageSize.same((75, 53))])[0].size == (75, 53)


@pytest.mark.parametrize("name", ROWS)
def test_the_layout_of_images_in_memory_changes_nothing(name: str) -> None:
    """On a CPU, prediction hands over channels last."""
    system = build(name).eval()
    image = picture()[None]
    size = (image.shape[2], image.shape[3])
    with torch.no_grad():
        plain = system(image)
        last = system(image.contiguous(memory_format=torch.channels_last))
    assert len(system.decode(last, [ImageSize.same(size)])) == 1
    for a, b in zip(plain, last, strict=True):
        if torch.is_tensor(a) and a.is_floating_point():
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ROWS)
def test_state_dict_round_trip(name: str) -> None:
    system, other = build(name).eval(), SYSTEMS[name].system(tiny_config(name)).eval()
    other.load_state_dict(system.state_dict())
    with torch.no_grad():
        for a, b in zip(system(picture()[None]), other(picture()[None]), strict=True):
            assert torch.equal(a, b)


# Exporting reasons about every operator; the two-stage systems take half a minute each.
@pytest.mark.slow
@pytest.mark.parametrize("name", ROWS)
def test_exported_program_equals_eager(name: str) -> None:
    system = build(name)
    images = picture()[None]
    program = export_program(system, images, dynamic="none")
    with torch.no_grad():
        for a, b in zip(program.module()(images), system(images), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ROWS)
def test_onnx_equals_eager_and_carries_its_passport(name: str, tmp_path) -> None:
    pytest.importorskip("onnxruntime")
    entry = SYSTEMS[name]
    passport = Passport(name=name, task=entry.task, classes=("a", "b", "c"), input=entry.input)
    path = export_onnx(build(name), tmp_path / "m.onnx", picture()[None], passport=passport)
    found = read_passport(path)
    assert found["classes"] == ["a", "b", "c"]
    assert InputSpec.from_dict(found["input"]) == entry.input
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]
