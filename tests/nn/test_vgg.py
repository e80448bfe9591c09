"""VGG and AlexNet: what the backbones' general tests do not say."""

import math
from typing import Literal

import pytest
import torch
from torch.nn import functional as F

from pixelwise.nn.backbones import build_backbone
from pixelwise.nn.backbones.vgg import MaxPool
from pixelwise.ops.alignment import Window, compose


def count(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("vgg16", 14_714_688), ("vgg19", 20_024_384), ("vgg11", 9_220_480), ("alexnet", 2_334_080)],
)
def test_parameter_counts(name: str, parameters: int) -> None:
    with torch.device("meta"):
        assert count(build_backbone(name, levels=(5,))) == parameters


@pytest.mark.parametrize(
    ("options", "sizes"),
    [  # an image of 97 x 129
        ({}, [(49, 65), (25, 33), (13, 17), (7, 9), (4, 5)]),
        ({"style": "torchvision"}, [(48, 64), (24, 32), (12, 16), (6, 8), (3, 4)]),
        ({"style": "fcn"}, [(148, 164), (74, 82), (37, 41), (19, 21), (10, 11)]),
        ({"style": "deeplab", "output_stride": 8}, [(49, 65), (25, 33), *[(13, 17)] * 3]),
        ({"output_stride": 16}, [(49, 65), (25, 33), (13, 17), *[(7, 9)] * 2]),
    ],
)
def test_sizes_of_vgg_maps(options: dict, sizes: list[tuple[int, int]]) -> None:
    with torch.device("meta"):
        net = build_backbone("vgg16", levels=(1, 2, 3, 4, 5), **options)
        maps = net(torch.empty(1, 3, 97, 129))
    assert [tuple(m.shape[2:]) for m in maps] == sizes
    assert net.channels == (64, 128, 256, 512, 512)
    assert [m.shape[1] for m in maps] == list(net.channels)


def test_maps_before_the_pools() -> None:
    """ParseNet scores conv3 to conv5; the last pool is left to it."""
    with torch.device("meta"):
        net = build_backbone(
            "vgg16", style="deeplab", output_stride=8, levels=(3, 4, 5), before_pool=True
        )
        maps = net(torch.empty(1, 3, 97, 129))
        pooled = net.last_pool(maps[-1])
    assert [tuple(m.shape[2:]) for m in maps] == [(25, 33), (13, 17), (13, 17)]
    assert net.strides == (4, 8, 8)
    assert (pooled.shape[2:], net.last_pool.stride) == ((13, 17), 1)


def test_deeplabs_vgg() -> None:
    """Pools 4 and 5 have stride 1, conv5 dilation 2, and fc6 is to have 4."""
    with torch.device("meta"):
        net = build_backbone("vgg16", style="deeplab", output_stride=8, levels=(5,))
        map_ = net(torch.empty(1, 3, 321, 321))[0]
    assert map_.shape == (1, 512, 41, 41)
    pools = [getattr(net, f"pool{i}").pool for i in range(1, 6)]
    assert [p.stride for p in pools] == [2, 2, 2, 1, 1]
    assert {p.kernel_size for p in pools} == {3}
    assert {p.padding for p in pools} == {1}
    assert {getattr(net, f"conv4_{i}").dilation for i in (1, 2, 3)} == {(1, 1)}
    assert {getattr(net, f"conv5_{i}").dilation for i in (1, 2, 3)} == {(2, 2)}
    assert net.dilation == 4
    assert net.strides == (8,)


@pytest.mark.parametrize("output_stride", [8, 16])
def test_a_dilated_vgg_holds_the_cells_of_the_strided_one(output_stride: int) -> None:
    torch.manual_seed(0)
    coarse = build_backbone("test_vgg", levels=(4, 5))
    fine = build_backbone("test_vgg", levels=(4, 5), output_stride=output_stride)
    fine.load_state_dict(coarse.state_dict())
    images = torch.randn(1, 3, 203, 260)
    with torch.no_grad():
        for level, whole, dilated in zip((16, 32), coarse(images), fine(images), strict=True):
            step = max(1, level // output_stride)
            inner = (..., slice(1, -1), slice(1, -1))
            sampled = dilated[..., ::step, ::step]
            torch.testing.assert_close(sampled[inner], whole[inner])


@pytest.mark.parametrize("side", [(1, 1), (2, 3), (9, 8), (16, 31)])
@pytest.mark.parametrize("kernel", [2, 3])
def test_pools_round_as_torchs_ceil_mode_does(kernel: Literal[2, 3], side: tuple[int, int]) -> None:
    """Ours is written without it, so that exports with open sizes can follow."""
    x = torch.rand(2, 3, *side)
    expected = F.max_pool2d(x, kernel, 2, kernel // 3, ceil_mode=True)
    assert torch.equal(MaxPool(kernel, stride=2, dilation=1, ceil=True)(x), expected)


def test_windows_give_the_measured_geometry() -> None:
    """The field of view of FCN's and DeepLab's literature: 404 pixels at fc7, stride 32."""
    with torch.device("meta"):
        net = build_backbone("vgg16", style="torchvision", levels=(5,))
    layers = [*net.windows(5), Window(7)]
    field, stride = 1, 1
    for layer in layers:
        field += (layer.extent - 1) * stride
        stride *= layer.stride
    assert (field, stride) == (404, 32)
    assert compose(layers).scale == pytest.approx(1 / 32)


@pytest.mark.parametrize("side", [64, 97, 227])
def test_alexnet_sizes(side: int) -> None:
    with torch.device("meta"):
        aligned = build_backbone("alexnet", levels=(2, 3, 4, 5))
        caffe = build_backbone("alexnet", levels=(2, 3, 4, 5), style="caffe")
    images = torch.empty(1, 3, side, side, device="meta")
    assert [m.shape[-1] for m in aligned(images)] == [
        math.ceil(side / stride) for stride in aligned.strides
    ]
    if side == 227:
        assert [tuple(m.shape[1:3]) for m in caffe(images)] == [
            (96, 55),
            (96, 27),
            (256, 13),
            (256, 6),
        ]


def test_alexnet_normalises_responses_after_the_pool() -> None:
    net = build_backbone("alexnet", levels=(2, 3))
    first, second = net(torch.randn(1, 3, 64, 64))
    pooled = F.max_pool2d(first, 3, 2, 1)
    squares = F.pad(pooled.square(), (0, 0, 0, 0, 2, 2))  # two channels on either side
    window = sum(squares[:, i : i + 96] for i in range(5))
    torch.testing.assert_close(second, pooled / (1 + 1e-4 / 5 * window) ** 0.75)


@pytest.mark.parametrize("name", ["vgg16", "alexnet"])
def test_freezing_and_truncating(name: str) -> None:
    with torch.device("meta"):
        whole = build_backbone(name, levels=(5,))
        short = build_backbone(name, levels=(3,))
    assert not hasattr(short, "conv5_1")
    assert not hasattr(short, "conv5")
    whole.freeze(2)
    frozen = {key.split(".")[0] for key, p in whole.named_parameters() if not p.requires_grad}
    assert (
        frozen
        == {
            "vgg16": {"conv1_1", "conv1_2", "conv2_1", "conv2_2"},
            "alexnet": {"conv1", "conv2"},
        }[name]
    )
