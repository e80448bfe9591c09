"""Masks, label maps and clusters: on the GPU as on the CPU."""

import pytest
import torch

from pixelwise.ops import (
    contours,
    crf,
    label_maps,
    mask_maps,
    mask_voting,
    masks,
    mean_shift,
    permutohedral,
    polar,
    resize,
    rle,
)
from pixelwise.types import ImageSize
from tests.gpu.device import GPU, assert_near, both, differing_pixels, same_on_both
from tests.gpu.drawn import disks, drawn, drawn_boxes

pytestmark = GPU


@same_on_both
def test_mask_targets(device):
    crops = rle.crops_from_dense(disks(12).to(device))
    index = torch.arange(30, device=device) % 12
    frames = drawn_boxes(30).to(device)
    return (
        masks.mask_targets(crops, frames, index, 14),
        masks.mask_targets(crops, frames, index, 14, mode="torchvision"),
        masks.shares_inside(crops, frames, index),
        masks.downsampled_targets(crops, (64, 96), (16, 24), thresh=0.5),
        masks.resized_targets(crops, frames.round() + 1, index, 9, thresh=0.5),
        mask_maps.mass_centres(crops),
        mask_maps.masks_on_cells(crops, index, (16, 24), 4),
        label_maps.paint_crops(crops, torch.arange(12, device=device).flip(0)),
        rle.dense_crops(crops),
    )


@pytest.mark.parametrize("side", [7, 14, 28])
def test_mask_targets_of_whole_pixels(side):
    """Boxes of objects are proposals too; how many samples a bin has is decided by a ceiling."""

    def resample(device):
        crops = rle.crops_from_dense(disks(12).to(device))
        index = (torch.arange(90) % 12).to(device)
        corner, extent = torch.arange(90)[:, None] % 5, torch.arange(90)[:, None] % 60 + 1
        frames = torch.cat([corner, corner, corner + extent, corner + extent], dim=1).float()
        how = {"mode": "torchvision"}
        return (
            masks.mask_targets(crops, frames.to(device), index, side),
            masks.mask_targets(crops, frames.to(device), index, side, **how),
            masks.resized_targets(crops, frames.to(device), index, side, thresh=0.5),
        )

    assert_near(*both(resample), tol=1e-6)


@same_on_both
def test_coded_masks(device):
    solid = disks(12).to(device)
    owners = torch.arange(64 * 96, device=device).view(64, 96) // 100 % 13 - 1
    return (
        rle.encode(solid),
        rle.encode_crops(rle.crops_from_dense(solid)),
        rle.fill_boxes(drawn_boxes(9).to(device), (64, 96)),
        label_maps.encode_label_map(owners, 12),
    )


@pytest.mark.parametrize("mode", ["grid", "expanded"])
def test_pasted_masks(mode):
    def paste(device):
        probs, frames = drawn(20, 28, 28).sigmoid().to(device), drawn_boxes(20).to(device)
        return masks.paste_masks(probs, frames, (64, 96), mode=mode)

    assert_near(*both(paste), tol=0)


@same_on_both
def test_resized_masks(device):
    probs = drawn(8, 16, 24).sigmoid().float().to(device)
    size = ImageSize(original=(90, 130), content=(60, 87), input=(64, 96))
    same = ImageSize.same((64, 96))
    return (
        masks.resize_masks(probs, size, thresh=0.5),
        mask_maps.masks_from_cells(probs, size, stride=4, thresh=0.5),
        mask_maps.masks_from_cells(probs, same, stride=4, thresh=0.5),
    )


def test_voted_masks():
    def vote(device):
        frames, scores = drawn_boxes(30).to(device), drawn(30, 4).softmax(1).to(device)
        kept, labels = (torch.arange(6, device=device) * 5, torch.arange(6, device=device) % 4)
        weights = mask_voting.vote_weights(frames, scores, kept, labels)
        probs = drawn(30, 9, 9).sigmoid().to(device)
        return weights, mask_voting.vote_masks(probs, frames, weights, (64, 96))

    (found, one), (expected, other) = both(vote)
    assert_near(found, expected, tol=1e-6)
    assert max(differing_pixels(one, other)) <= 2  # sums that end on the threshold


@same_on_both
def test_polar_targets(device):
    crops = rle.crops_from_dense(disks(12).to(device))
    index = torch.arange(12, device=device)
    lines = contours.largest_contours(crops, index)
    centres = contours.centroids(lines)
    rays = polar.contour_rays(lines, centres.float() + 0.25, index, rays=36)
    fine = contours.subdivide(lines, 3)
    return (
        lines,
        centres,
        rays,
        polar.contour_rays(fine, centres.float() + 0.25, index, rays=12),
        polar.polar_centerness(rays),
        polar.ray_ends(centres.float(), rays),
    )


@pytest.mark.parametrize("align_corners", [True, False])
def test_label_maps_of_logits(align_corners):
    def label(device):
        size = ImageSize(original=(101, 140), content=(60, 83), input=(64, 96))
        return resize.logits_to_prediction(
            drawn(5, 16, 24).float().to(device), size, align_corners=align_corners, with_probs=True
        )

    found, expected = both(label)
    assert_near(found.probs, expected.probs, tol=1e-5)
    assert int((found.labels != expected.labels).sum()) <= 3


@same_on_both
def test_clusters(device):
    middle = torch.arange(200) % 5 * 10.0
    cloud = (drawn(200, 3) * 0.3 + middle[:, None]).to(device)
    found = mean_shift.mean_shift(cloud, 2.0, min_points=3)
    return found, mean_shift.nearest_centres(cloud, found.centres, 1.5)


def test_dense_crf():
    def refine(device):
        probs = drawn(3, 20, 24).softmax(0).float().to(device)
        image = (drawn(20, 24, 3).sigmoid() * 255).to(torch.uint8)  # a picture stays on the CPU
        settings = crf.DenseCRF(sigma_alpha=9, sigma_beta=20, iterations=3)
        lattice = permutohedral.build_lattice(image.view(-1, 3).float().to(device) / 20)
        ones = torch.ones(480, 2, device=device)
        exact = crf.dense_crf_exact(probs, image, settings)
        return exact, crf.dense_crf(probs, image.to(device), settings), lattice.filter(ones)

    assert_near(*both(refine), tol=1e-4)
