import math

import pytest
import torch

from pixelwise.nn.conventions import CONVENTIONS
from pixelwise.nn.mask_head import MaskHead
from pixelwise.nn.regions import Regions
from pixelwise.ops import rle
from pixelwise.types import MaskCrops

RULES = CONVENTIONS["detectron2"]
K = 3


def build(**options):
    torch.manual_seed(0)
    return MaskHead(8, K, options.pop("conventions", RULES), channels=8, **options)


def regions(labels, rois, windows=((4, 8, 20, 24),), index=None):
    windows = torch.tensor(windows)
    areas = (windows[:, 2] - windows[:, 0]) * (windows[:, 3] - windows[:, 1])
    rois = torch.tensor(rois, dtype=torch.float32).reshape(-1, 4)
    return Regions(
        torch.cat([torch.zeros(len(rois), 1), rois], dim=1),
        torch.tensor(labels),
        rois,
        torch.tensor(index if index is not None else [0] * len(labels)),
        MaskCrops((32, 32), windows, torch.ones(int(areas.sum()), dtype=torch.uint8)),
        K,
    )


def test_parameters_of_the_paper():
    with torch.device("meta"):
        head = MaskHead(256, 80, RULES)
        c4 = MaskHead(2048, 80, RULES, convs=0)
    conv, deconv = 9 * 256 * 256 + 256, 4 * 256 * 256 + 256
    assert sum(p.numel() for p in head.parameters()) == 4 * conv + deconv + 80 * 257
    assert sum(p.numel() for p in c4.parameters()) == 4 * 2048 * 256 + 256 + 80 * 257


@pytest.mark.parametrize(("agnostic", "count"), [(False, K), (True, 1)])
def test_masks_have_twice_the_side(agnostic, count):
    head = build(class_agnostic=agnostic, norm="group")
    logits = head.predict(torch.randn(5, 8, 14, 14))
    assert logits.shape == (5, count, 28, 28)
    chosen = head.of_class(logits, torch.tensor([0, 1, 2, 0, 1]))
    assert torch.equal(chosen[2], logits[2, 0 if agnostic else 2])


def test_target_of_a_mask_that_equals_the_box_is_all_ones():
    for origin in CONVENTIONS:
        head = build(conventions=CONVENTIONS[origin])
        target = head.targets(regions([1], [[4, 8, 20, 24]]), 28)
        assert target.shape == (1, 28, 28)
        if "torchvision" in origin:  # samples half a pixel off, over the far edges
            assert (target > 0).all()
            target = target[:, :-1, :-1]
        assert (target == 1).all()


def test_the_proposal_is_the_crop_not_the_object():
    target = build().targets(regions([1], [[4, 8, 36, 24]]), 28)[0]
    assert target[:, :14].all()
    assert not target[:, 14:].any()


def test_loss_in_closed_form():
    head = build()
    given = regions([1, 0], [[4, 8, 20, 24], [20, 8, 31, 24]])
    logits = torch.zeros(2, K, 28, 28)
    logits[:, 2] = 99.0  # a class that neither region has
    assert head.loss(logits, given)["mask"] == pytest.approx(math.log(2))
    logits[0, 1], logits[1, 0] = 60.0, -60.0
    assert head.loss(logits, given)["mask"] < 1e-6
    logits[1, 0] = 0.0
    assert head.loss(logits, given)["mask"] == pytest.approx(math.log(2) / 2)


@pytest.mark.parametrize("norm", [None, "batch"])
def test_no_object_is_zero_with_a_gradient(norm):
    head = build(norm=norm)
    given = regions([K, K, -1], [[0, 0, 4, 4], [1, 1, 5, 5], [2, 2, 9, 9]]).foreground()
    assert len(given.labels) == 1
    losses = head.loss(head.predict(torch.randn(1, 8, 14, 14)), given)
    assert losses["mask"] == 0
    losses["mask"].backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in head.parameters())


def test_pasting_a_full_mask_fills_its_box():
    boxes = torch.tensor([[3.0, 4.0, 20.0, 30.0], [0.0, 0.0, 32.0, 8.0]])
    masks = build().decode(torch.full((2, 28, 28), 50.0), boxes, (32, 40))
    dense = rle.decode(masks)
    assert dense[0].sum() == 17 * 26
    assert dense[0, 4:30, 3:20].all()
    assert dense[1].sum() == 32 * 8
    assert len(build().decode(torch.zeros(0, 28, 28), torch.zeros(0, 4), (8, 8))) == 0
