import math

import numpy as np
import pytest
import torch

from pixelwise.nn.conventions import CONVENTIONS
from pixelwise.nn.fully_connected_fusion import FullyConnectedFusion
from pixelwise.nn.mask_head import MaskHead
from pixelwise.nn.regions import Regions
from pixelwise.ops import rle
from pixelwise.types import MaskCrops
from tests.fixtures import fixture_params, load_fixture

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


@pytest.mark.parametrize("agnostic", [False, True])
@pytest.mark.parametrize("origin", ["detectron2", "softmax_masks"])
@pytest.mark.parametrize("with_branch", [False, True])
def test_one_class_alone_is_that_of_all(agnostic, origin, with_branch):
    branch = FullyConnectedFusion(8, 6) if with_branch else None
    head = build(class_agnostic=agnostic, conventions=CONVENTIONS[origin], branch=branch)
    torch.nn.init.normal_(next(m for n, m in head.named_modules() if "_logits" in n).bias)
    features, labels = torch.randn(5, 8, 6, 6), torch.tensor([0, 2, 1, 2, 0])
    alone = head.predict_class(features, labels)
    assert alone.shape == (5, 12, 12)
    torch.testing.assert_close(alone, head.of_class(head.predict(features), labels))
    assert head.predict_class(features[:0], labels[:0]).shape == (0, 12, 12)


def test_target_of_a_mask_that_equals_the_box_is_all_ones():
    for origin in CONVENTIONS:
        head = build(conventions=CONVENTIONS[origin])
        target = head.targets(regions([1], [[2, 2, 30, 30]], windows=((2, 2, 30, 30),)), 28)
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
    masks = build().paste(torch.full((2, 28, 28), 50.0), boxes, (32, 40))
    dense = rle.decode(masks)
    assert dense[0].sum() == 17 * 26
    assert dense[0, 4:30, 3:20].all()
    assert dense[1].sum() == 32 * 8
    assert len(build().paste(torch.zeros(0, 28, 28), torch.zeros(0, 4), (8, 8))) == 0


@pytest.mark.parametrize("path", fixture_params("instance", "ops_matching_losses*"))
@pytest.mark.parametrize(
    ("origin", "value"),
    [
        ("torchvision", "mask_bce_soft_targets_torchvision"),
        ("detectron2", "mask_bce_binary_targets_mmdet"),
        ("mmdet", "mask_bce_binary_targets_mmdet"),
    ],
)
def test_losses_of_the_originals(path, origin, value):
    fixture = load_fixture(path)
    facts = fixture.meta["configuration"]
    matches, labels = fixture.tensor("roi_match_torchvision"), fixture.tensor("roi_labels")
    inside = (labels > 0).nonzero()[:, 0]
    shape = fixture.shape("mask_logits_sampled")
    noise = np.random.Generator(np.random.PCG64(facts["seed"] + 1000)).standard_normal(shape)
    logits = torch.from_numpy(noise.astype(np.float32))
    fixture.compare("mask_logits_sampled", logits)
    given = Regions(
        torch.cat([torch.zeros(len(inside), 1), fixture.tensor("proposals")[inside]], dim=1),
        labels[inside] - 1,
        fixture.tensor("gt_boxes")[matches[inside]],
        matches[inside],
        three_quarters(fixture.tensor("gt_boxes"), tuple(facts["image"])),
        facts["classes"],
    )
    head = MaskHead(8, facts["classes"], CONVENTIONS[origin], channels=8)
    loss = head.loss(logits[:, 1:], given)["mask"]  # channel 0 is the background's
    assert loss == pytest.approx(fixture.meta["losses"][value], rel=1e-5)


def three_quarters(boxes, size):
    """The fixture's masks: each box without its top left quarter."""
    windows, pixels = [], []
    for x1, y1, x2, y2 in boxes.tolist():
        window = [int(x1), int(y1), int(x2), int(y2)]
        mask = torch.ones(window[3] - window[1], window[2] - window[0], dtype=torch.uint8)
        mask[: int((y1 + y2) / 2) - window[1], : int((x1 + x2) / 2) - window[0]] = 0
        windows.append(window)
        pixels.append(mask.flatten())
    return MaskCrops(size, torch.tensor(windows), torch.cat(pixels))


def softmax_head(**options):
    return build(conventions=CONVENTIONS["softmax_masks"], **options)


def test_competing_masks_are_probabilities_of_a_softmax():
    """The logit of a class is its log-odds, so that a sigmoid gives what the softmax says."""
    head = softmax_head()
    logits = head.predict(torch.randn(5, 8, 14, 14)) * 100
    assert logits.shape == (5, K + 1, 28, 28)  # the last channel is no class
    labels = torch.tensor([0, 1, 2, 0, 1])
    probs = logits.softmax(1)[torch.arange(5), labels]
    torch.testing.assert_close(head.of_class(logits, labels).sigmoid(), probs)
    chosen = torch.stack([head.of_class(logits, torch.full((5,), k)) for k in range(K)])
    assert (chosen.sigmoid().sum(0) <= 1 + 1e-5).all()


def test_loss_of_competing_masks_in_closed_form():
    head = softmax_head()
    # The object fills the left half of the region.
    given = regions([1], [[4, 8, 36, 24]])
    assert head.loss(torch.zeros(1, K + 1, 28, 28), given)["mask"] == pytest.approx(math.log(K + 1))
    logits = torch.zeros(1, K + 1, 28, 28)
    logits[:, 1, :, :14] = logits[:, K, :, 14:] = 50.0
    assert head.loss(logits, given)["mask"] < 1e-6
    logits[:, 2, :, :14] = 50.0  # another class claims the object too: every second bit is lost
    assert head.loss(logits, given)["mask"] == pytest.approx(math.log(2) / 2)


def test_independent_masks_do_not_care_for_other_classes():
    head, given = build(), regions([1], [[4, 8, 36, 24]])
    logits = torch.zeros(1, K, 28, 28)
    before = head.loss(logits, given)["mask"]
    logits[:, 2] = 50.0
    assert head.loss(logits, given)["mask"] == before
