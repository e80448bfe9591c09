"""Operators on feature maps, with the gradients of those that are trained through."""

import pytest
import torch

from pixelwise.nn.deform import DeformConv
from pixelwise.ops import (
    blend,
    cell_grid,
    mask_assembly,
    point_conv,
    position_sensitive,
    roi,
    space_to_batch,
)
from pixelwise.ops.depthwise import depthwise_conv2d
from tests.gpu.device import GPU, assert_near, both, same_on_both
from tests.gpu.drawn import drawn, drawn_boxes, drawn_rois, with_gradients

pytestmark = GPU


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("samples", [0, 1, 2])
def test_roi_align(samples, aligned):
    """torchvision's operator here, our own on the CPU."""

    def pool(device):
        features = drawn(2, 5, 20, 30).to(device)
        rois = drawn_rois(25, reach=130).double().to(device)
        return with_gradients(
            lambda f: roi.roi_align(f, rois, (3, 4), scale=0.25, sampling=samples, aligned=aligned),
            features,
        )

    assert_near(*both(pool), tol=1e-10)


@same_on_both
def test_pooled_levels(device):
    pyramid = [drawn(2, 4, 64 // s, 96 // s, seed=s).to(device) for s in (1, 2, 4)]
    rois = drawn_rois(30, reach=380).double().to(device)
    how = {"strides": (4, 8, 16), "aligned": True}
    return (
        with_gradients(lambda *p: roi.pool_levels(p, rois, 7, sampling=2, **how), *pyramid),
        with_gradients(lambda *p: roi.pool_levels(p, rois, 7, sampling=None, **how), *pyramid),
        roi.pool_levels(pyramid, rois[:0], 7, sampling=2, **how),
    )


@pytest.mark.parametrize("mode", ["copy", "pool", "align", "rounded"])
def test_position_sensitive(mode):
    def read(device):
        maps, rois = drawn(2, 4 * 9, 16, 20).float().to(device), drawn_rois(20).to(device)
        side = 3 if mode in ("align", "rounded") else 9
        return with_gradients(
            lambda m: position_sensitive.assemble(m, rois, mode, parts=3, side=side, scale=1 / 8),
            maps,
        )

    assert_near(*both(read), tol=2e-6, what=mode)


@pytest.mark.parametrize("parts", [3, 7])
def test_bins_that_end_on_a_cell(parts):
    """Off by the last bit, a border of a bin would be in the next cell; see `ops.division`."""

    def read(device):
        maps = drawn(1, parts**2, 40, 40).float().to(device)
        start, extent = torch.arange(200) % 11, torch.arange(200) + 1
        rois = torch.stack([0 * start, start, start, start + extent, start + extent], dim=1)
        rois = rois.float().to(device)
        how = {"parts": parts, "scale": 1 / 4}
        return (
            position_sensitive.assemble(maps, rois, "pool", side=parts, **how),
            position_sensitive.assemble(maps, rois, "copy", side=3 * parts, **how),
        )

    assert_near(*both(read), tol=1e-6)


def test_blended_bases():
    """The corners of regions are rounded on either side: the sixth digit of a bilinear weight."""

    def blended(device):
        rois = drawn_rois(12).to(device)

        def mask(bases, attention):
            return blend.blend(blend.pool_bases(bases, rois, 14), attention)

        return with_gradients(mask, drawn(2, 4, 24, 32).to(device), drawn(12, 4, 5, 5).to(device))

    found, expected = both(blended)
    assert_near(found, expected, tol=5e-6)


@same_on_both
def test_assembled_prototypes(device):
    frames = drawn_boxes(10, reach=40).to(device)
    return with_gradients(
        lambda p, c: mask_assembly.assemble_masks(p, c, frames),
        drawn(6, 30, 40).to(device),
        drawn(10, 6).to(device),
    )


@pytest.mark.parametrize("groups", [1, 2])
def test_deformable_convolution(groups):
    def convolve(device):
        torch.manual_seed(0)
        layer = DeformConv(4, 6, stride=2, groups=groups).double()
        layer.offset_mask.weight.data.normal_(0, 0.1)
        layer = layer.to(device)
        x = drawn(2, 4, 13, 17).to(device)
        return with_gradients(layer, x), layer.sample(x, *layer.taps(x)).detach()

    assert_near(*both(convolve), tol=1e-9)


@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("stride", [1, 2])
def test_depthwise_convolution(kernel, stride):
    """A CPU has gradients of our own, which a GPU must not take."""

    def convolve(device):
        x, weight = drawn(2, 6, 15, 18).to(device), drawn(6, 1, kernel, kernel).to(device)
        out = depthwise_conv2d(
            x.clone().requires_grad_(),
            weight,
            stride=(stride, stride),
            padding=(kernel // 2, kernel // 2),
        )
        if device.type != "cpu":
            assert "FastGradients" not in type(out.grad_fn).__name__
        return with_gradients(
            lambda a, w: depthwise_conv2d(a, w, stride=(stride, stride), padding=(1, 1)), x, weight
        )

    assert_near(*both(convolve), tol=1e-10)


@same_on_both
def test_atrous_by_batches(device):
    return with_gradients(
        lambda x, w: space_to_batch.atrous_conv(x, w, rate=3),
        drawn(2, 3, 17, 19).to(device),
        drawn(4, 3, 3, 3).to(device),
    )


@same_on_both
def test_convolved_points(device):
    levels = [drawn(2, 5, 8, 9).to(device), drawn(2, 5, 4, 5).to(device)]
    image, point = (torch.arange(30, device=device) % n for n in (2, 92))
    weight, bias = drawn(7, 5, 3, 3).to(device), drawn(7).to(device)
    return point_conv.convolve_at(levels, image, point, weight=weight, bias=bias)


@same_on_both
def test_grids_of_cells(device):
    labels = (torch.arange(2 * 33 * 47) % 5).view(2, 33, 47).to(device)
    return (
        with_gradients(
            lambda x: cell_grid.resize_grid(x, (33, 49), step=8), drawn(2, 3, 5, 7).to(device)
        ),
        cell_grid.labels_at_cells(labels, (5, 6), step=8.0, outside=255),
        cell_grid.labels_at_cells(labels, (5, 6)),
    )
