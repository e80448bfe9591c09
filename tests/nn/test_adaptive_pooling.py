import dataclasses

import pytest
import torch
from torch import nn

from pixelwise.nn.adaptive_pooling import AdaptivePool, LevelFusion
from pixelwise.nn.blocks import ConvNormAct
from pixelwise.nn.box_head import ConvTrunk
from pixelwise.nn.conventions import CONVENTIONS
from pixelwise.nn.regions import RegionPool
from pixelwise.ops.roi import roi_align

RULES = CONVENTIONS["panet"]
STRIDES = (4, 8, 16, 32)
ROIS = torch.tensor(
    [[0.0, 3, 3, 40, 30], [1, 50, 10, 90, 90], [0, 0, 0, 128, 96], [1, 7.5, 8, 19, 21]]
)


def pyramid(strides=STRIDES):
    torch.manual_seed(0)
    return [torch.randn(2, 3, 96 // s, 128 // s) for s in strides]


def pool(strides=STRIDES, kind=AdaptivePool, **changes):
    rules = dataclasses.replace(RULES, **changes)
    return kind(side=7, strides=strides, conventions=rules)


def test_every_region_is_pooled_from_every_level():
    features = pyramid()
    ours = pool()(features, ROIS)
    assert ours.shape == (4, 4, 3, 7, 7)
    for level, stride, x in zip(features, STRIDES, ours, strict=True):
        alone = roi_align(level, ROIS, 7, scale=1 / stride, sampling=2, aligned=False)
        assert torch.equal(x, alone)


@pytest.mark.parametrize("sampling", [2, 0, None])
def test_with_one_level_it_is_plain_pooling(sampling):
    features = pyramid((8,))
    ours = pool((8,), roi_sampling=sampling)(features, ROIS)
    plain = pool((8,), RegionPool, roi_sampling=sampling)(features, ROIS)
    assert torch.equal(ours[0], plain)


def test_levels_after_the_last_stride_are_left_out():
    features = pyramid()
    assert pool()([*features, features[-1]], ROIS).shape[0] == 4
    assert pool()(features, torch.zeros(0, 5)).shape == (4, 0, 3, 7, 7)


def test_half_precision_keeps_the_corners_of_regions():
    exact = pool()(pyramid(), ROIS)
    rounded = pool()([x.bfloat16() for x in pyramid()], ROIS)
    assert rounded.dtype == torch.bfloat16
    assert (rounded.float() - exact).abs().max() < 0.02 * exact.abs().max()


def layers(count=4):
    torch.manual_seed(1)
    return [ConvNormAct(3, 5, 3, norm=None) for _ in range(count)]


@pytest.mark.parametrize(("fusion", "value"), [("max", 5.0), ("sum", 7.0)])
def test_fusion_of_a_drawn_case(fusion, value):
    fuse = LevelFusion([nn.ReLU(), nn.ReLU(), nn.ReLU()], fusion)
    features = torch.tensor([2.0, -4.0, 5.0]).reshape(3, 1, 1, 1, 1)
    assert fuse(features).item() == value


def test_the_maximum_is_taken_after_the_non_linearity_of_each_level():
    features = pool()(pyramid(), ROIS)
    own = layers()
    views = torch.stack([layer(x) for layer, x in zip(own, features, strict=True)])
    assert torch.equal(LevelFusion(own)(features), views.amax(0))
    assert (views >= 0).all()


def test_equal_levels_with_equal_weights_are_one_level():
    one = pool()(pyramid(), ROIS)[:1]
    first = layers(1)[0]
    fuse = LevelFusion([first, first, first])
    assert torch.equal(fuse(one.expand(3, -1, -1, -1, -1)), first(one[0]))


def test_levels_may_be_reordered_with_their_weights():
    features, own = pool()(pyramid(), ROIS), layers()
    order = [2, 0, 3, 1]
    shuffled = LevelFusion([own[i] for i in order])(features[order])
    assert torch.equal(LevelFusion(own)(features), shuffled)
    assert not torch.equal(LevelFusion(own)(features), LevelFusion(own)(features[order]))


@pytest.mark.parametrize("with_convs", [True, False])
def test_a_trunk_over_one_level_is_the_plain_trunk(with_convs):
    """Its layers are the plain trunk's; only the first stands apart."""
    torch.manual_seed(2)
    if with_convs:
        plain = ConvTrunk(3, 7, convs=4, fcs=1, channels=6, out_features=8, norm="group")
        fused = ConvTrunk(
            6,
            7,
            convs=3,
            fcs=1,
            channels=6,
            out_features=8,
            norm="group",
            fuse=LevelFusion([plain.convs[0]]),
        )
        for ours, theirs in zip(fused.convs, plain.convs[1:], strict=True):
            ours.load_state_dict(theirs.state_dict())
        fused.fcs.load_state_dict(plain.fcs.state_dict())
    else:
        plain = ConvTrunk(3, 7, fcs=2, out_features=8, fc_norm="group")
        first = ConvTrunk(3, 7, fcs=1, out_features=8, fc_norm="group")
        first.fcs[0], first.fc_norms[0] = plain.fcs[0], plain.fc_norms[0]
        fused = ConvTrunk(8, 1, fcs=1, out_features=8, fc_norm="group", fuse=LevelFusion([first]))
        fused.fcs[0], fused.fc_norms[0] = plain.fcs[1], plain.fc_norms[1]
    features = torch.randn(5, 3, 7, 7)
    assert torch.equal(fused(features[None]), plain(features))
