"""Region features: order, level rules, exactness on ramps, export, and what upstream computes."""

import re

import pytest
import torch
import torchvision
from torch import Tensor, nn

from pixelwise.ops.roi import assign_levels, pool_levels, roi_align, roi_pool, rois_of
from tests.fixtures import fixture_params, load_fixture

STRIDES = (4, 8, 16, 32)


def pyramid(channels: int = 2, height: int = 128, width: int = 160) -> list[Tensor]:
    g = torch.Generator().manual_seed(0)
    return [torch.randn(2, channels, height // s, width // s, generator=g) for s in STRIDES]


def regions(n: int, seed: int = 0) -> Tensor:
    """Regions of all sizes, in random order over levels and images."""
    g = torch.Generator().manual_seed(seed)
    side = 2 ** (3 + 7 * torch.rand(n, generator=g))
    corner = torch.rand(n, 2, generator=g) * 100
    image = torch.randint(0, 2, (n, 1), generator=g)
    return torch.cat([image, corner, corner + side[:, None]], 1)


def test_levels_follow_the_size() -> None:
    boxes = torch.tensor([[0.0, 0, s, s] for s in (1, 55, 57, 111, 113, 223, 225, 449, 4000)])
    assert assign_levels(boxes).tolist() == [2, 2, 2, 2, 3, 3, 4, 5, 5]
    odd = torch.tensor([[5.0, 5, 5, 5], [9.0, 9, 3, 12]])
    assert assign_levels(odd).tolist() == [2, 2], "empty and turned boxes go to the finest"
    assert assign_levels(boxes, finest=3, coarsest=4).tolist() == [3, 3, 3, 3, 3, 3, 4, 4, 4]


@pytest.mark.parametrize("aligned", [True, False])
def test_pooling_keeps_the_input_order(aligned: bool) -> None:
    features, rois = pyramid(), regions(40)
    ours = pool_levels(features, rois, 7, strides=STRIDES, sampling=2, aligned=aligned)
    assert ours.shape == (40, 2, 7, 7)
    levels = assign_levels(rois[:, 1:])
    assert levels.unique().tolist() == [2, 3, 4, 5]
    for roi, level, value in zip(rois, levels.tolist(), ours, strict=True):
        alone = roi_align(
            features[level - 2],
            roi[None],
            7,
            scale=1 / STRIDES[level - 2],
            sampling=2,
            aligned=aligned,
        )
        torch.testing.assert_close(value, alone[0])


def test_no_regions() -> None:
    features = [f.requires_grad_() for f in pyramid()]
    none = pool_levels(
        features, torch.zeros(0, 5), (3, 5), strides=STRIDES, sampling=2, aligned=True
    )
    assert none.shape == (0, 2, 3, 5)
    none.sum().backward()
    assert rois_of([torch.zeros(0, 4), torch.zeros(0, 4)]).shape == (0, 5)


def test_gradients_reach_the_level_that_was_read() -> None:
    features = [f.requires_grad_() for f in pyramid()]
    rois = torch.tensor([[1.0, 0, 0, 150, 120], [0, 3, 3, 20, 20]])
    pool_levels(features, rois, 7, strides=STRIDES, sampling=2, aligned=True).sum().backward()
    assert [bool(f.grad.abs().sum() > 0) for f in features] == [True, True, False, False]


def test_regions_of_images() -> None:
    rois = rois_of([torch.tensor([[1.0, 2, 3, 4]]), torch.zeros(0, 4), torch.ones(2, 4)])
    assert rois.tolist() == [[0, 1, 2, 3, 4], [2, 1, 1, 1, 1], [2, 1, 1, 1, 1]]


def test_align_is_exact_on_a_ramp() -> None:
    """The mean of a linear function over a bin is its value at the centre."""
    y, x = torch.meshgrid(torch.arange(32.0), torch.arange(40.0), indexing="ij")
    ramp = (0.5 * x - 0.25 * y + 3)[None, None]
    roi = torch.tensor([[0, 33.3, 20.1, 101.7, 88.8]])
    bins = roi_align(ramp, roi, (3, 5), scale=0.25, sampling=2, aligned=True)[0, 0]
    w, h = (101.7 - 33.3) / 4 / 5, (88.8 - 20.1) / 4 / 3
    for i in range(3):
        for j in range(5):
            centre_x, centre_y = 33.3 / 4 + (j + 0.5) * w - 0.5, 20.1 / 4 + (i + 0.5) * h - 0.5
            assert bins[i, j].item() == pytest.approx(
                0.5 * centre_x - 0.25 * centre_y + 3, abs=1e-4
            )


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("sampling", "aligned"), [(2, False), (3, True), (0, True), (0, False)])
def test_align_equals_torchvisions_operator(
    layout: torch.memory_format, sampling: int, aligned: bool
) -> None:
    """Also outside the picture, without extent, turned round; and so do the gradients."""
    features = pyramid(5)[1].contiguous(memory_format=layout)
    odd = [[0, -30, -9, 5, 40], [1, 150, 90, 400, 500], [0, -300, -300, -200, -200]]
    odd += [[1, 20, 20, 20, 50], [0, 60, 60, 30, 20], [1, 3, 3, 3.5, 120], [0, 0, 0, 160, 128]]
    rois = torch.cat([regions(30), torch.tensor(odd)])
    mine, theirs = (features.clone().requires_grad_() for _ in range(2))
    ours = roi_align(mine, rois, (3, 5), scale=1 / 8, sampling=sampling, aligned=aligned)
    expected = torchvision.ops.roi_align(theirs, rois, (3, 5), 1 / 8, sampling, aligned)
    assert torch.allclose(ours, expected, atol=2e-6)
    grad = torch.randn(ours.shape, generator=torch.Generator().manual_seed(1))
    ours.backward(grad)
    expected.backward(grad)
    assert torch.allclose(mine.grad, theirs.grad, atol=1e-5)


def test_align_survives_boxes_that_are_no_numbers() -> None:
    rois = torch.tensor([[0, float("nan"), 0, 8, 8], [0, 0, 0, float("inf"), 8]])
    pooled = roi_align(torch.ones(1, 2, 4, 4), rois, 2, scale=1.0, sampling=0, aligned=True)
    assert pooled.shape == (2, 2, 2, 2)


def test_pool_takes_the_largest() -> None:
    feature = torch.arange(24.0).reshape(1, 1, 4, 6)
    roi = torch.tensor([[0, 0.0, 0, 12, 12]])  # cells 0..3, the last included
    assert roi_pool(feature, roi, 2, scale=0.25).tolist() == [[[[7, 9], [19, 21]]]]


class Pool(nn.Module):
    def forward(self, a: Tensor, b: Tensor, c: Tensor, d: Tensor, rois: Tensor) -> Tensor:
        return pool_levels([a, b, c, d], rois, 7, strides=STRIDES, sampling=2, aligned=False)


def test_torch_export() -> None:
    n = torch.export.Dim("n", min=2, max=300)
    program = torch.export.export(
        Pool(), (*pyramid(), regions(20)), dynamic_shapes=({}, {}, {}, {}, {0: n})
    ).module()
    for count in (20, 33):
        inputs = (*pyramid(), regions(count, count))
        torch.testing.assert_close(program(*inputs), Pool()(*inputs))


def test_onnx_export(tmp_path: object) -> None:
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    inputs = (*pyramid(), regions(20))
    torch.onnx.export(Pool().eval(), inputs, dynamo=True, verbose=False).save(
        tmp_path / "pool.onnx"
    )
    session = runtime.InferenceSession(tmp_path / "pool.onnx")
    inputs = (*pyramid(), regions(20, 5))
    feeds = {i.name: x.numpy() for i, x in zip(session.get_inputs(), inputs, strict=True)}
    (ours,) = session.run(None, feeds)
    torch.testing.assert_close(torch.from_numpy(ours), Pool()(*inputs), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("path", fixture_params("instance", "ops_fpn_levels*"))
def test_parity_of_levels(path: object) -> None:
    fixture = load_fixture(path)
    cfg = fixture.meta["configuration"]
    for rule in ("torchvision", "mmdet", "detectron2"):
        ours = assign_levels(
            fixture.tensor("boxes"), finest=cfg["k_min"], coarsest=cfg["k_max"], rule=rule
        )
        assert torch.equal(ours, fixture.tensor(f"{rule}_level")), rule


@pytest.mark.parametrize("path", fixture_params("instance", "ops_roi_align*"))
def test_parity_of_align(path: object) -> None:
    fixture = load_fixture(path)
    scale = fixture.meta["configuration"]["spatial_scale"]
    feature, rois = fixture.tensor("feature"), fixture.tensor("rois")
    compared = 0
    for key in fixture.arrays:
        match = re.fullmatch(r"aligned(\d)_sampling(\d)_(\d+)x(\d+)", key)
        if match:
            aligned, sampling, rows, columns = map(int, match.groups())
            ours = roi_align(
                feature,
                rois,
                (rows, columns),
                scale=scale,
                sampling=sampling,
                aligned=bool(aligned),
            )
            fixture.compare(key, ours, rtol=1e-5)
            compared += 1
    assert compared == len(fixture.arrays) - 2


def test_without_samples_regions_are_max_pooled() -> None:
    """RoIPool on the level of each region, with the order kept."""
    features, rois = pyramid(), regions(20)
    ours = pool_levels(features, rois, 7, strides=STRIDES, sampling=None, aligned=True)
    levels = (assign_levels(rois[:, 1:]) - 2).tolist()
    for roi, level, value in zip(rois, levels, ours, strict=True):
        alone = roi_pool(features[level], roi[None], 7, scale=1 / STRIDES[level])
        assert torch.equal(value, alone[0])


def test_detectrons_levels_differ_on_the_boundary_only() -> None:
    side = 112 * (1 - 3e-7)
    boxes = torch.tensor([[0.0, 0, side, side], [0, 0, 111, 111], [0, 0, 113, 113]])
    assert assign_levels(boxes, rule="detectron").tolist() == [3, 2, 3]
    assert assign_levels(boxes, rule="detectron2").tolist() == [2, 2, 3]
