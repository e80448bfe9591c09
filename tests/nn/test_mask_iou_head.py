import pytest
import torch
import torch.nn.functional as F

from pixelwise.nn.mask_iou_head import MaskIoUHead
from pixelwise.nn.regions import Regions
from pixelwise.ops.rle import crops_from_dense
from pixelwise.types import MaskCrops
from tests.fixtures import fixture_params, load_fixture

K = 3
CUT = 20.0, 8.0, 40.0, 24.0  # holds the right half of the object below


def build(**options):
    torch.manual_seed(0)
    return MaskIoUHead(4, K, channels=8, out_features=16, **options)


def regions(rois, labels, window=(12, 8, 28, 24), image=(48, 64)):
    """One object that fills its window, and regions that are matched to it."""
    rois = torch.tensor(rois, dtype=torch.float32).reshape(-1, 4)
    windows = torch.tensor([window])
    count = (window[2] - window[0]) * (window[3] - window[1])
    return Regions(
        torch.cat([torch.zeros(len(rois), 1), rois], dim=1),
        torch.tensor(labels),
        rois,
        torch.zeros(len(rois), dtype=torch.int64),
        MaskCrops(image, windows, torch.ones(count, dtype=torch.uint8)),
        K,
    )


def perfect(given):
    return given.object_masks(28) * 20 - 10


@pytest.mark.parametrize(
    ("options", "count"),
    [
        # OpenMMLab's head of 80 classes; the authors' has one more output, for the background.
        ({}, 16_340_304),
        ({"pool": "mean"}, 16_340_304 - 48 * 256 * 1024),
    ],
)
def test_parameters_of_the_published_heads(options, count):
    with torch.device("meta"):
        head = MaskIoUHead(256, 80, **options)
        authors = MaskIoUHead(256, 81, **options)
    assert sum(p.numel() for p in head.parameters()) == count
    assert sum(p.numel() for p in authors.parameters()) == count + 1025


@pytest.mark.parametrize("pool", ["flatten", "mean"])
def test_it_sees_features_and_the_pooled_probabilities(pool):
    head, features, logits = build(pool=pool), torch.randn(5, 4, 14, 14), torch.randn(5, 28, 28)
    mask = F.max_pool2d(logits.sigmoid()[:, None], 2)
    x = head.convs(torch.cat([features, mask], 1))
    assert x.shape == (5, 8, 7, 7)
    x = x.flatten(1) if pool == "flatten" else x.mean((2, 3))
    ious = head.predict(features, logits)
    assert torch.equal(ious, head.iou(head.fcs(x)))
    assert torch.equal(head.of_class(ious, torch.tensor([0, 2, 1, 1, 0]))[1], ious[1, 2])
    order = torch.tensor([3, 0, 4, 1, 2])
    torch.testing.assert_close(head.predict(features[order], logits[order]), ious[order])


def test_the_target_of_a_perfect_mask():
    """1 where the region holds the object, else the share that it holds."""
    given = regions([[12, 8, 28, 24], [4, 0, 60, 40], CUT], [0, 1, 2])
    targets = build().targets(perfect(given), given)
    assert targets[:2].tolist() == [1, 1]
    assert targets[2] == pytest.approx(0.5)


def test_the_target_counts_what_lies_outside_the_region():
    given = regions([CUT], [0])
    logits = torch.full((1, 28, 28), -5.0)
    wanted = given.object_masks(28)[0] > 0
    half = wanted.clone()
    half[14:] = False
    logits[0, half] = 5.0  # half of the half that is inside
    assert build().targets(logits, given).item() == pytest.approx(0.25)
    everything = torch.full((1, 28, 28), 5.0)  # inside: 0.4 of the region are object
    inside, whole = int(wanted.sum()), 2 * int(wanted.sum())
    expected = inside / (28 * 28 + whole - inside)
    assert build().targets(everything, given).item() == pytest.approx(expected)


def test_masks_are_binarised_at_probability_one_half():
    given = regions([[12, 8, 28, 24]], [0])
    for value, wanted in ((0.01, 1.0), (0.0, 0.0), (-0.01, 0.0)):
        assert build().targets(torch.full((1, 28, 28), value), given).item() == wanted


def test_an_empty_mask_has_no_target_and_no_loss():
    given = regions([[12, 8, 28, 24], [12, 8, 28, 24]], [1, K])
    head = build()
    logits = torch.stack([torch.full((28, 28), -5.0), torch.full((28, 28), 5.0)])
    assert head.targets(logits, given).tolist() == [0, 0]  # the second one is background
    logits.requires_grad_()
    losses = head.loss(head.predict(torch.randn(2, 4, 14, 14), logits), logits, given)
    assert losses["mask_iou"] == 0
    losses["mask_iou"].backward()
    assert all(p.grad is not None and not p.grad.any() for p in head.parameters())


def test_loss_in_closed_form():
    head = build()
    given = regions([[12, 8, 28, 24], CUT, [12, 8, 28, 24], [0, 0, 8, 8]], [1, 2, 0, -1])
    logits = perfect(given)
    logits[2] = -5.0  # an empty mask
    ious = torch.full((4, K), 9.0)
    ious[0, 1], ious[1, 2] = 0.7, 0.9
    loss = head.loss(ious, logits, given)["mask_iou"].item()
    assert loss == pytest.approx(0.5 * ((1 - 0.7) ** 2 + (0.5 - 0.9) ** 2) / 2)


def test_features_and_mask_learn_and_the_target_does_not():
    head, given = build(), regions([[12, 8, 28, 24]], [1])
    features = torch.randn(1, 4, 14, 14, requires_grad=True)
    logits = torch.randn(1, 28, 28, requires_grad=True)
    head.loss(head.predict(features, logits), logits, given)["mask_iou"].backward()
    assert features.grad.abs().sum() > 0
    assert logits.grad.abs().sum() > 0
    alone = head.loss(torch.rand(1, K, requires_grad=True), logits, given)["mask_iou"]
    assert torch.autograd.grad(alone, logits, allow_unused=True) == (None,)


def test_no_region_at_all():
    head, given = build(), regions([], [])
    given = given.select(torch.zeros(0, dtype=torch.int64))
    assert head.targets(torch.zeros(0, 28, 28), given).shape == (0,)


@pytest.mark.parametrize("path", fixture_params("instance", "ops_masks*"))
def test_targets_of_the_originals(path):
    fixture = load_fixture(path)
    boxes, index = fixture.tensor("target_proposals"), fixture.tensor("target_gt_index")
    given = Regions(
        torch.cat([torch.zeros(len(boxes), 1), boxes], dim=1),
        torch.zeros_like(index),
        boxes,
        index,
        crops_from_dense(fixture.tensor("gt_masks")),
        K,
    )
    head, logits = build(), fixture.tensor("pred_logits")
    fixture.compare("maskiou_target_logit_gt_zero", head.targets(logits, given), rtol=1e-5)
    fixture.compare("maskiou_target_perfect", head.targets(perfect(given), given), rtol=1e-5)
    # OpenMMLab compares logits with 0.5, which we do not copy: the same function, shifted.
    shifted = head.targets(logits - 0.5, given)
    fixture.compare("mmdet_maskiou_target_logit_gt_half", shifted, rtol=1e-5)
