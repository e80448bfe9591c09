from typing import Any

import pytest
import torch
from torch import nn

from pixelwise.errors import UsageError
from pixelwise.nn.norm import ChannelAffine, FrozenBatchNorm
from pixelwise.systems.mask_rcnn import MaskRCNN, MaskRCNNConfig
from pixelwise.systems.panet import PANet, PANetConfig
from tests.two_stage import SMALL


def build(**changes: Any) -> PANet:
    torch.manual_seed(0)
    return PANet(PANetConfig(**{**SMALL, **changes}))


@pytest.mark.parametrize("box_head", ["2fc", "4conv1fc"])
@pytest.mark.parametrize("branch", [None, "relu"])
def test_without_its_additions_it_is_mask_rcnn(box_head, branch):
    """No path, one level per region, nothing added to the masks: the same function."""
    torch.manual_seed(0)
    norms = {"head_norm": "batch"}
    plain = MaskRCNN(MaskRCNNConfig(**SMALL, box_head=box_head, **norms)).eval()
    without = {"path": "linear", "fusion": None, "mask_branch": branch}
    ours = build(**without, box_head=box_head, neck_norm="batch", **norms).eval()
    own = ours.state_dict()
    ours.load_state_dict(own | plain.state_dict())
    assert {key for key in own if not key.startswith(("path", "mask_head.branch"))} == set(
        plain.state_dict()
    )
    for conv in ours.path.modules():
        if isinstance(conv, nn.Conv2d):
            nn.init.zeros_(conv.weight)
    for block in ours.path.output:
        nn.init.dirac_(block.conv.weight)
        block.norm = nn.Identity()
    for block in ours.path.down:
        block.norm = nn.Identity()
    if branch:
        nn.init.zeros_(ours.mask_head.branch.fc.weight)
    images = torch.randn(2, 3, 75, 101)
    with torch.inference_mode():
        wanted, found = plain(images), ours(images)
    assert wanted.valid.any()
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b)


def test_the_finest_level_of_the_pyramid_is_that_of_the_path():
    net = build().eval()
    images = torch.randn(1, 3, 64, 96)
    with torch.inference_mode():
        before, after = net.neck(net.backbone(images)), net.pyramid(images)
    assert torch.equal(before[0], after[0])
    assert [x.shape for x in before] == [x.shape for x in after]
    assert all(not torch.equal(a, b) for a, b in zip(before[1:], after[1:], strict=True))


def parameters(**changes: Any) -> int:
    """Frozen norms counted, as the projects do."""
    with torch.device("meta"):
        net = PANet(PANetConfig(**changes))
    frozen = [m for m in net.modules() if isinstance(m, ChannelAffine | FrozenBatchNorm)]
    return sum(p.numel() for p in net.parameters()) + sum(2 * m.weight.numel() for m in frozen)


def test_published_parameter_counts():
    # The released networks also predict a box and a mask of the background.
    background = 4 * (1024 + 1) + (256 + 1)
    assert parameters(backbone_norm="affine") + background == 73_356_357
    released = {"neck_norm": None, "box_head": "2fc", "num_classes": 20, "backbone_norm": "affine"}
    assert parameters(**released) + background == 108_494_045
    openmmlab = {"path": "sum", "fusion": None, "mask_branch": None}
    openmmlab |= {"box_head": "2fc", "neck_norm": None, "head_norm": None}
    assert parameters(**openmmlab) == 47_936_816


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"path": "up"}, "relu, linear, sum"),
        ({"fusion": "mean"}, "max, sum, None"),
        ({"mask_branch": "fc"}, "relu, linear, None"),
        ({"neck_norm": "layer"}, "group"),
    ],
)
def test_a_wrong_setting_says_what_is_right(changes, word):
    with pytest.raises(UsageError, match=word):
        PANetConfig(**changes)
