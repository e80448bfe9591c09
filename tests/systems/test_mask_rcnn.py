import dataclasses
import subprocess
import sys
from typing import get_args

import pytest
import torch

from pixelwise.errors import UsageError
from pixelwise.nn.conventions import CONVENTIONS, Origin
from pixelwise.nn.norm import FrozenBatchNorm
from pixelwise.ops import rle
from pixelwise.systems.mask_rcnn import MaskRCNN, MaskRCNNConfig
from pixelwise.types import ImageSize, InstanceTarget, MaskCrops

TINY = MaskRCNNConfig(
    num_classes=3,
    backbone="resnet18",
    backbone_norm="batch",
    channels=16,
    anchor_sizes=(8, 16, 32, 64, 128),
    pre_nms=(200, 100),
    proposals=(100, 40),
    regions_per_image=32,
    detections_per_image=12,
    score_thresh=0.0,
)
VARIANTS = {
    "fpn": {},
    "four_levels": {"anchor_sizes": (8, 16, 32, 64)},
    "gn": {"head_norm": "group", "box_head": "4conv1fc", "backbone_norm": "group"},
    "sync": {"head_norm": "sync", "box_head": "4conv1fc", "backbone_norm": "sync"},
    "bn_two_rpn_convs": {"head_norm": "batch", "box_head": "4conv1fc", "rpn_convs": 2},
    "agnostic": {"class_agnostic_masks": True},
    "frozen_caffe": {
        "backbone": "resnet50",
        "backbone_norm": "frozen",
        "backbone_style": "caffe",
    },
    "c4": {"neck": "c4", "regions_per_image": 8, "proposals": (20, 10)},
    "dc5": {"neck": "dc5"},
    "mmdet": {"conventions": "mmdet"},
    "torchvision": {"conventions": "torchvision"},
    "detectron": {"conventions": "detectron"},
    "roi_pool": {"conventions": "roi_pool"},
    "softmax_masks": {"conventions": "softmax_masks"},
}


def build(**changes):
    torch.manual_seed(0)
    return MaskRCNN(dataclasses.replace(TINY, **changes))


def make_target(boxes, labels, size, crowd=None):
    """Objects that fill their boxes."""
    windows = torch.tensor(boxes, dtype=torch.int64).reshape(-1, 4)
    areas = (windows[:, 2] - windows[:, 0]) * (windows[:, 3] - windows[:, 1])
    return InstanceTarget(
        boxes=windows.float(),
        labels=torch.tensor(labels, dtype=torch.int64),
        masks=MaskCrops(size, windows, torch.ones(int(areas.sum()), dtype=torch.uint8)),
        crowd=torch.tensor(crowd or [False] * len(labels), dtype=torch.bool),
    )


def batch(size=(96, 128), count=2):
    torch.manual_seed(1)
    images = torch.randn(count, 3, *size)
    targets = [
        make_target([[10, 10, 40, 50], [60, 20, 100, 60]], [0, 2], size),
        make_target([[5, 30, 90, 80]], [1], (size[0] - 10, size[1] - 20)),
    ]
    return images, targets[:count]


@pytest.mark.parametrize("name", VARIANTS)
def test_every_parameter_gets_a_gradient_from_finite_losses(name):
    net = build(**VARIANTS[name])
    images, targets = batch()
    losses = net.loss(images, targets)
    assert list(losses) == ["rpn_objectness", "rpn_box", "class", "box", "mask"]
    assert all(torch.isfinite(x) and x.ndim == 0 for x in losses.values())
    assert all(losses[key] > 0 for key in ("rpn_objectness", "rpn_box", "class", "mask"))
    sum(losses.values()).backward()
    missing = [k for k, p in net.named_parameters() if p.requires_grad and p.grad is None]
    assert missing == []


@pytest.mark.parametrize("name", ["fpn", "bn_two_rpn_convs"])
@pytest.mark.parametrize("kind", ["empty", "crowd_only", "degenerate"])
def test_images_without_objects_teach_the_background_only(name, kind):
    net = build(**VARIANTS[name])
    size = (96, 128)
    target = {
        "empty": make_target([], [], size),
        "crowd_only": make_target([[0, 0, 128, 96]], [1], size, [True]),
        "degenerate": make_target([[20, 20, 20, 40]], [1], size),
    }[kind]
    losses = net.loss(torch.randn(2, 3, *size), [target, target])
    assert losses["mask"] == 0
    assert losses["box"] == 0
    assert losses["rpn_box"] == 0
    assert all(torch.isfinite(x) for x in losses.values())
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in net.parameters() if p.requires_grad)


def test_a_crowd_is_neither_object_nor_background():
    net = build()
    size = (96, 128)
    whole = make_target([[0, 0, 128, 96]], [1], size, [True])
    losses = net.loss(torch.randn(1, 3, *size), [whole])
    # Every anchor inside the picture lies in the crowd; only those that reach out teach something.
    assert losses["class"] == 0


@pytest.mark.parametrize("name", VARIANTS)
def test_raw_has_fixed_sizes_and_lies_inside_the_picture(name):
    net = build(**VARIANTS[name]).eval()
    with torch.inference_mode():
        raw = net(torch.randn(2, 3, 75, 101))
    side = 14 if name == "c4" else 28
    assert raw.boxes.shape == (2, 12, 4)
    assert raw.mask_logits.shape == (2, 12, side, side)
    assert raw.valid.any()
    assert raw.boxes.amin() >= 0
    assert raw.boxes[..., 2].amax() <= 101
    assert raw.boxes[..., 3].amax() <= 75
    assert (raw.scores[:, 1:] <= raw.scores[:, :-1]).all()
    assert not raw.boxes[~raw.valid].any()
    for prediction in net.decode(raw, [ImageSize.same((75, 101))] * 2):
        assert prediction.size == (75, 101)
        windows = prediction.masks.windows
        assert (windows >= 0).all()
        assert (windows[:, 2] <= 101).all()
        assert (windows[:, 3] <= 75).all()


def test_one_picture_gives_the_same_in_any_batch():
    net = build(score_thresh=0.3).eval()
    a, b = torch.randn(2, 3, 96, 96)
    with torch.inference_mode():
        alone, twice, mixed = net(a[None]), net(torch.stack([a, a])), net(torch.stack([b, a]))
    for one, two, three in zip(alone, twice, mixed, strict=True):
        assert torch.equal(two[0], two[1])
        torch.testing.assert_close(one[0], two[0], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(one[0], three[1], rtol=1e-4, atol=1e-4)


def test_a_blank_or_minute_picture_is_no_error():
    net = build(score_thresh=0.9).eval()
    with torch.inference_mode():
        for size in ((33, 1), (64, 64)):
            raw = net(torch.zeros(1, 3, *size))
            assert len(net.decode(raw, [ImageSize.same(size)])[0]) == int(raw.valid.sum()) == 0


def test_decode_returns_to_the_original_frame():
    net = build().eval()
    raw_type = type(net(torch.zeros(1, 3, 64, 64)))
    logits = torch.full((1, 3, 28, 28), 9.0)
    raw = raw_type(
        boxes=torch.tensor([[[8.0, 4.0, 24.0, 12.0], [20.0, 10.0, 40.0, 30.0], [33, 0, 40, 8]]]),
        scores=torch.tensor([[0.9, 0.8, 0.7]]),
        labels=torch.tensor([[2, 0, 1]]),
        valid=torch.tensor([[True, True, True]]),
        mask_logits=logits,
    )
    # 100 x 64 pixels, halved to 50 x 32, padded to 64 x 64: the third box lies in the padding.
    size = ImageSize(original=(100, 64), content=(50, 32), input=(64, 64))
    found = net.decode(raw, [size])[0]
    assert found.boxes.tolist() == [[16, 8, 48, 24], [40, 20, 64, 60]]
    assert found.labels.tolist() == [2, 0]
    masks = rle.decode(found.masks)
    assert masks.shape == (2, 100, 64)
    assert masks[0].sum() == 32 * 16
    assert masks[0, 8:24, 16:48].all()
    assert rle.areas(found.masks).tolist() == [512, 24 * 40]


def test_permuting_regions_permutes_what_the_heads_say():
    net = build().eval()
    rois = torch.tensor(
        [[0.0, 3, 3, 40, 30], [0, 50, 10, 90, 90], [0, 0, 0, 128, 96], [0, 7.5, 8, 19, 21]]
    )
    order = torch.tensor([2, 0, 3, 1])
    with torch.inference_mode():
        pyramid = net.pyramid(torch.randn(1, 3, 96, 128))
        boxes = net.box_head.predict(net.box_features(pyramid, rois))
        masks = net.mask_head.predict(net.mask_features(pyramid, rois))
        again = net.box_head.predict(net.box_features(pyramid, rois[order]))
        masks_again = net.mask_head.predict(net.mask_features(pyramid, rois[order]))
    torch.testing.assert_close(again.logits, boxes.logits[order])
    torch.testing.assert_close(again.deltas, boxes.deltas[order])
    torch.testing.assert_close(masks_again, masks[order])


def test_moving_the_picture_by_64_px_moves_the_maps():
    net = build().eval()
    torch.manual_seed(2)
    image = torch.zeros(1, 3, 256, 384)
    image[..., 96:160, 96:160] = torch.randn(3, 64, 64)
    moved = image.roll(64, dims=3)
    with torch.inference_mode():
        here, there = net.pyramid(image)[0], net.pyramid(moved)[0]
    # Away from the borders; zero padding of deep layers reaches far, so only nearly.
    a, b = here[..., 24:40, 24:40], there[..., 24:40, 40:56]
    assert (a - b).abs().max() < 0.05 * a.abs().max()


def test_class_rows_name_real_parameters_with_that_many_rows():
    for name, changes in VARIANTS.items():
        net = build(**changes)
        state = dict(net.named_parameters())
        for prefix, rows in MaskRCNN.CLASS_ROWS.items():
            found = [p for key, p in state.items() if key.startswith(prefix)]
            if prefix == "mask_head.class_logits" and name == "agnostic":
                assert not found
                continue
            with_rest = prefix == "box_head.classify" or (
                prefix.startswith("mask_head") and name == "softmax_masks"
            )
            extra = 1 if with_rest else 0  # the background, last
            assert all(len(p) == rows * 3 + extra for p in found)
            assert len(found) == 2


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"neck": "pan"}, "choose one of fpn, c4, dc5"),
        ({"box_head": "3fc"}, "2fc, 4conv1fc"),
        ({"conventions": "mine"}, "torchvision"),
        ({"anchor_sizes": (32, 64)}, "4 or 5"),
        ({"neck": "c4", "backbone": "mobilenetv3_small_050"}, "resnet50"),
    ],
)
def test_a_wrong_setting_says_what_is_right(changes, word):
    with pytest.raises(UsageError, match=word):
        dataclasses.replace(TINY, **changes)


def test_lists_from_json_become_tuples():
    config = dataclasses.replace(TINY, anchor_sizes=[8, 16, 32, 64], pre_nms=[10, 5])
    assert config.anchor_sizes == (8, 16, 32, 64)
    assert hash(config)
    assert len(dataclasses.fields(config)) <= 20


def test_light_backbone_of_timm_learns():
    net = build(backbone="tf_efficientnet_lite0")
    losses = net.loss(*batch())
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in net.parameters() if p.requires_grad)


def test_sampling_follows_torchs_generator():
    net = build()
    images, targets = batch()

    def draw(seed):
        torch.manual_seed(seed)
        return {k: float(v.detach()) for k, v in net.loss(images, targets).items()}

    assert draw(3) == draw(3)
    assert draw(3) != draw(4)


def test_published_parameter_counts():
    with torch.device("meta"):
        ours = {
            classes: sum(
                p.numel() for p in MaskRCNN(MaskRCNNConfig(num_classes=classes)).parameters()
            )
            for classes in (80, 90)
        }
    assert ours[80] == 44_343_216  # detectron2, whose frozen norms hold no parameters
    # torchvision also predicts a box and a mask of the background.
    assert ours[90] + 4 * (1024 + 1) + (256 + 1) == 44_401_393


def test_conventions_hold_one_row_per_origin():
    assert tuple(CONVENTIONS) == get_args(Origin)
    assert CONVENTIONS["torchvision"].box_beta == pytest.approx(1 / 9)
    first = build(conventions="torchvision_v1", backbone_norm="frozen")
    assert {m.eps for m in first.modules() if isinstance(m, FrozenBatchNorm)} == {0.0}


def test_half_precision_keeps_the_corners_of_regions():
    """Under bf16 a coordinate of 100.5 would be 100: boxes must not follow the features' type."""
    net = build(score_thresh=0.3).eval()
    images, targets = batch()
    with torch.inference_mode():
        pyramid = net.pyramid(images)
        rois = torch.tensor([[0.0, 20.5, 30.5, 100.5, 90.5]])
        exact = net.box_pool(pyramid, rois)
        rounded = net.box_pool([x.bfloat16() for x in pyramid], rois)
    assert rounded.dtype == torch.bfloat16
    assert (rounded.float() - exact).abs().max() < 0.02 * exact.abs().max()
    with torch.autocast("cpu", torch.bfloat16):
        losses = net.loss(images, targets)
        raw = net(images)
    assert all(torch.isfinite(x) and x.dtype == torch.float32 for x in losses.values())
    assert {x.dtype for x in raw} == {torch.float32, torch.int64, torch.bool}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fpn", "agnostic", "c4", "torchvision"])
def test_exported_graphs_compute_the_same(name):
    """Also with fewer candidates than detections, where the fixed size is filled up."""
    net = build(**{**VARIANTS[name], "score_thresh": 0.3, "detections_per_image": 90}).eval()
    with torch.no_grad():
        net.box_head.classify.weight.mul_(20)  # confident enough to pass the threshold
    images = torch.randn(2, 1, 3, 64, 96)
    exported = torch.export.export(net, (images[0],)).module()
    for image in images:
        with torch.no_grad():
            eager, graph = net(image), exported(image)
        valid = eager.valid
        assert 0 < int(valid.sum()) < 90
        assert torch.equal(valid, graph[3])
        for a, b in zip(eager, graph, strict=True):
            torch.testing.assert_close(b[valid], a[valid], rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_it_overfits_one_picture():
    torch.manual_seed(0)
    net = MaskRCNN(
        dataclasses.replace(TINY, backbone_norm="group", head_norm="group", score_thresh=0.5)
    )
    size = (96, 128)
    target = make_target([[10, 10, 40, 50], [60, 20, 100, 60]], [0, 2], size)
    image = torch.randn(1, 3, *size) * 0.1
    image[0, 0, 10:50, 10:40] += 2
    image[0, 1, 20:60, 60:100] += 2
    optimiser = torch.optim.AdamW(net.parameters(), lr=1e-3)
    for _ in range(120):
        losses = net.loss(image, [target])
        optimiser.zero_grad()
        sum(losses.values()).backward()
        optimiser.step()
    net.eval()
    found = net.decode(net(image), [ImageSize.same(size)])[0]
    found = found.select(found.scores > 0.7)
    assert sorted(found.labels.tolist()) == [0, 2]
    truth = torch.zeros(2, *size, dtype=torch.bool)
    truth[0, 10:50, 10:40] = True
    truth[1, 20:60, 60:100] = True
    masks = torch.from_numpy(rle.decode(found.masks)).bool()[found.labels.argsort()]
    iou = (masks & truth).sum((1, 2)) / (masks | truth).sum((1, 2))
    assert (iou > 0.85).all()


@pytest.mark.slow
def test_decoding_200_instances_of_a_large_picture_stays_below_400_mb():
    script = """
import resource, torch
from pixelwise.systems.mask_rcnn import MaskRCNN, MaskRCNNConfig, Raw
from pixelwise.types import ImageSize
net = MaskRCNN(MaskRCNNConfig(backbone="resnet18", channels=32, num_classes=2)).eval()
torch.manual_seed(0)
corner = torch.rand(1, 200, 2) * torch.tensor([2000.0, 1000.0])
boxes = torch.cat([corner, corner + 400 + torch.rand(1, 200, 2) * 500], dim=2)
raw = Raw(boxes, torch.rand(1, 200).sort(descending=True).values, torch.zeros(1, 200).long(),
          torch.ones(1, 200).bool(), torch.randn(1, 200, 28, 28))
net.decode(Raw(*(x[:, :1] for x in raw)), [ImageSize.same((64, 64))])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
found = net.decode(raw, [ImageSize.same((1500, 3000))])
assert len(found[0]) == 200
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert float(done.stdout) < 400
