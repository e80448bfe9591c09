import dataclasses
from typing import Any

import pytest
import torch
from torch import nn

from pixelwise.errors import UsageError
from pixelwise.nn.norm import ChannelAffine, FrozenBatchNorm
from pixelwise.systems.mask_rcnn import MaskRCNN, MaskRCNNConfig
from pixelwise.systems.panet import PANet, PANetConfig
from pixelwise.types import ImageSize
from tests.systems.test_mask_rcnn import batch, make_target

SMALL: dict[str, Any] = {
    "num_classes": 3,
    "backbone": "resnet18",
    "backbone_norm": "batch",
    "channels": 16,
    "anchor_sizes": (8, 16, 32, 64, 128),
    "pre_nms": (200, 100),
    "proposals": (100, 40),
    "regions_per_image": 32,
    "detections_per_image": 12,
    "score_thresh": 0.0,
}
TINY = PANetConfig(**SMALL)
PLAIN: dict[str, Any] = {"path": "linear", "neck_norm": None, "head_norm": None}
VARIANTS: dict[str, dict[str, Any]] = {
    "released": {},
    "2fc": {"box_head": "2fc"},
    "plain_2fc": {"box_head": "2fc", **PLAIN},
    "sync_norm": {"neck_norm": "sync", "head_norm": "sync", "backbone_norm": "sync"},
    "batch_norm_2fc": {"neck_norm": "batch", "head_norm": "batch", "box_head": "2fc"},
    "sum": {"fusion": "sum", "mask_branch": "linear"},
    "openmmlab": {"path": "sum", "fusion": None, "mask_branch": None, "head_norm": None},
    "one_level": {"fusion": None, "conventions": "panet"},
    "one_level_2fc": {"fusion": None, "box_head": "2fc", "mask_branch": None},
    "four_levels": {"anchor_sizes": (8, 16, 32, 64)},
    "affine_caffe": {
        "backbone": "resnet50",
        "backbone_norm": "affine",
        "backbone_style": "caffe",
    },
}


def build(**changes: Any) -> PANet:
    torch.manual_seed(0)
    return PANet(dataclasses.replace(TINY, **changes))


@pytest.mark.parametrize("name", VARIANTS)
def test_every_parameter_gets_a_gradient_from_finite_losses(name):
    net = build(**VARIANTS[name])
    losses = net.loss(*batch())
    assert list(losses) == ["rpn_objectness", "rpn_box", "class", "box", "mask"]
    assert all(torch.isfinite(x) and x.ndim == 0 for x in losses.values())
    assert all(losses[key] > 0 for key in ("rpn_objectness", "rpn_box", "class", "mask"))
    sum(losses.values()).backward()
    missing = [k for k, p in net.named_parameters() if p.requires_grad and p.grad is None]
    assert missing == []


@pytest.mark.parametrize("kind", ["empty", "crowd_only", "degenerate"])
def test_images_without_objects_teach_the_background_only(kind):
    net = build()
    size = (96, 128)
    target = {
        "empty": make_target([], [], size),
        "crowd_only": make_target([[0, 0, 128, 96]], [1], size, [True]),
        "degenerate": make_target([[20, 20, 20, 40]], [1], size),
    }[kind]
    losses = net.loss(torch.randn(2, 3, *size), [target, target])
    assert losses["mask"] == losses["box"] == losses["rpn_box"] == 0
    assert losses["class"] > 0 or kind == "crowd_only"
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in net.parameters() if p.requires_grad)


@pytest.mark.parametrize("name", ["released", "openmmlab", "four_levels"])
def test_raw_has_fixed_sizes_and_lies_inside_the_picture(name):
    net = build(**VARIANTS[name]).eval()
    with torch.inference_mode():
        raw = net(torch.randn(2, 3, 75, 101))
    assert raw.boxes.shape == (2, 12, 4)
    assert raw.mask_logits.shape == (2, 12, 28, 28)
    assert raw.valid.any()
    assert raw.boxes.amin() >= 0
    assert raw.boxes[..., 2].amax() <= 101
    assert raw.boxes[..., 3].amax() <= 75
    for prediction in net.decode(raw, [ImageSize.same((75, 101))] * 2):
        assert prediction.size == (75, 101)
        assert (prediction.masks.windows[:, 2:] <= [101, 75]).all()


def test_one_picture_gives_the_same_in_any_batch():
    net = build(score_thresh=0.3).eval()
    a, b = torch.randn(2, 3, 96, 96)
    with torch.inference_mode():
        alone, twice, mixed = net(a[None]), net(torch.stack([a, a])), net(torch.stack([b, a]))
    for one, two, three in zip(alone, twice, mixed, strict=True):
        assert torch.equal(two[0], two[1])
        torch.testing.assert_close(one[0], two[0], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(one[0], three[1], rtol=1e-4, atol=1e-4)


def test_permuting_regions_permutes_what_the_heads_say():
    net = build().eval()
    rois = torch.tensor(
        [[0.0, 3, 3, 40, 30], [0, 50, 10, 90, 90], [0, 0, 0, 128, 96], [0, 7.5, 8, 19, 21]]
    )
    order = torch.tensor([2, 0, 3, 1])
    with torch.inference_mode():
        pyramid = net.pyramid(torch.randn(1, 3, 96, 128))
        boxes = net.box_head.predict(net.box_pool(pyramid, rois))
        masks = net.mask_head.predict(net.mask_pool(pyramid, rois))
        again = net.box_head.predict(net.box_pool(pyramid, rois[order]))
        masks_again = net.mask_head.predict(net.mask_pool(pyramid, rois[order]))
    torch.testing.assert_close(again.logits, boxes.logits[order])
    torch.testing.assert_close(again.deltas, boxes.deltas[order])
    torch.testing.assert_close(masks_again, masks[order])


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
        ({"box_head": "3fc"}, "4conv1fc, 2fc"),
        ({"neck_norm": "layer"}, "group"),
        ({"conventions": "mine"}, "torchvision"),
        ({"anchor_sizes": (32, 64)}, "4 or 5"),
    ],
)
def test_a_wrong_setting_says_what_is_right(changes, word):
    with pytest.raises(UsageError, match=word):
        dataclasses.replace(TINY, **changes)


def test_class_rows_name_real_parameters_with_that_many_rows():
    state = dict(build().named_parameters())
    for prefix, rows in PANet.CLASS_ROWS.items():
        found = [p for key, p in state.items() if key.startswith(prefix)]
        extra = 1 if prefix == "box_head.classify" else 0
        assert len(found) == 2
        assert all(len(p) == rows * 3 + extra for p in found)


def test_half_precision_trains_and_detects():
    net = build(score_thresh=0.3)
    with torch.autocast("cpu", torch.bfloat16):
        losses = net.loss(*batch())
        raw = net.eval()(batch()[0])
    assert all(torch.isfinite(x) and x.dtype == torch.float32 for x in losses.values())
    assert {x.dtype for x in raw} == {torch.float32, torch.int64, torch.bool}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["released", "plain_2fc", "openmmlab"])
def test_exported_graphs_and_the_decode_step_give_eager_detections(name):
    net = build(**{**VARIANTS[name], "score_thresh": 0.3, "detections_per_image": 90}).eval()
    with torch.no_grad():
        net.box_head.classify.weight.mul_(20)  # confident enough to pass the threshold
    images = torch.randn(2, 1, 3, 64, 96)
    exported = torch.export.export(net, (images[0],)).module()
    for image in images:
        with torch.no_grad():
            eager, graph = net(image), exported(image)
        assert 0 < int(eager.valid.sum()) < 90
        for a, b in zip(eager, graph, strict=True):
            torch.testing.assert_close(b, a, rtol=1e-4, atol=1e-4)
        size = [ImageSize.same((64, 96))]
        one, two = net.decode(eager, size)[0], net.decode(type(eager)(*graph), size)[0]
        assert torch.equal(one.labels, two.labels)
        assert (one.masks.windows == two.masks.windows).all()
