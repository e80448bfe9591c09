import subprocess
import sys
from typing import Any, get_args

import pytest
import torch

from pixelwise.errors import UsageError
from pixelwise.nn.conventions import CONVENTIONS, Origin
from pixelwise.nn.norm import FrozenBatchNorm
from pixelwise.ops import rle
from pixelwise.systems.mask_rcnn import MaskRCNN, MaskRCNNConfig
from pixelwise.types import ImageSize
from tests.two_stage import SMALL, batch, learn, two_bright_boxes


def build(**changes: Any) -> MaskRCNN:
    torch.manual_seed(0)
    return MaskRCNN(MaskRCNNConfig(**{**SMALL, **changes}))


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


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"neck": "pan"}, "choose one of fpn, c4, dc5"),
        ({"neck": "c4", "backbone": "mobilenetv3_small_050"}, "resnet50"),
    ],
)
def test_a_wrong_setting_says_what_is_right(changes, word):
    with pytest.raises(UsageError, match=word):
        MaskRCNNConfig(**changes)


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
    net = build().eval()
    with torch.inference_mode():
        pyramid = net.pyramid(batch()[0])
        rois = torch.tensor([[0.0, 20.5, 30.5, 100.5, 90.5]])
        exact = net.box_pool(pyramid, rois)
        rounded = net.box_pool([x.bfloat16() for x in pyramid], rois)
    assert rounded.dtype == torch.bfloat16
    assert (rounded.float() - exact).abs().max() < 0.02 * exact.abs().max()


@pytest.mark.slow
def test_it_overfits_one_picture():
    net = build(backbone_norm="group", head_norm="group", score_thresh=0.5)
    image, target = two_bright_boxes()
    learn(net, image, target, steps=120)
    found = net.decode(net(image), [ImageSize.same(target.size)])[0]
    found = found.select(found.scores > 0.7)
    assert sorted(found.labels.tolist()) == [0, 2]
    truth = torch.zeros(2, *target.size, dtype=torch.bool)
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
