"""Operators: on the GPU as on the CPU, with the gradients of those that are trained through."""

import pytest
import torch

from pixelwise.nn.deform import DeformConv
from pixelwise.ops import (
    anchors,
    blend,
    boxes,
    cell_grid,
    contours,
    crf,
    label_maps,
    mask_assembly,
    mask_maps,
    mask_voting,
    masks,
    matching,
    mean_shift,
    permutohedral,
    point_conv,
    points,
    polar,
    position_sensitive,
    resize,
    rle,
    roi,
    sampling,
    space_to_batch,
    suppress,
)
from pixelwise.ops.depthwise import depthwise_conv2d
from pixelwise.types import ImageSize
from tests.gpu.device import DEVICE, GPU, assert_near, differing_pixels
from tests.gpu.drawn import disks, drawn, drawn_boxes, drawn_rois, with_gradients

pytestmark = GPU

CASES = {}


def case(function):
    """A function of a device; what it returns must be the same on both."""
    CASES[function.__name__] = function
    return function


def both(function):
    return function(DEVICE), function(torch.device("cpu"))


@pytest.mark.parametrize("name", CASES)
def test_equal(name):
    found, expected = both(CASES[name])
    assert_near(found, expected, tol=1e-6, what=name)


# --- boxes, anchors, matching ----------------------------------------------------------------


@case
def coded_boxes(device):
    refs, goals = drawn_boxes(40, seed=1).to(device), drawn_boxes(40, seed=2).to(device)
    deltas = boxes.encode_boxes(refs, goals, (10, 10, 5, 5), plus_one=True)
    back = boxes.decode_boxes(deltas, refs, (10, 10, 5, 5), plus_one=True)
    return deltas, back, boxes.pairwise_iou(refs, goals), boxes.pairwise_ioa(refs, goals)


@case
def clipped_boxes(device):
    return boxes.clip_boxes(drawn_boxes(40).to(device) * 2 - 60, (80, 100))


@case
def placed_anchors(device):
    base = anchors.base_anchors((16.0, 32.0), (0.5, 1.0, 2.0)).to(device)
    grid = anchors.grid_anchors(base, (7, 9), (8, 8))
    return grid, anchors.centred_anchors(base, (7, 9), (55.0, 70.0)), anchors.square_anchors(base)


@pytest.mark.parametrize("low_quality_to", ["most", "last"])
def test_matching(low_quality_to):
    def match(device):
        iou = boxes.pairwise_iou(drawn_boxes(9).to(device), drawn_boxes(300, seed=3).to(device))
        return (
            matching.match_boxes(
                iou, high=0.5, low=0.3, allow_low_quality=True, low_quality_to=low_quality_to
            ),
            matching.match_one_each(iou, high=0.5, low=0.4),
            matching.match_boxes(iou[:0], high=0.5, low=0.4),
        )

    assert_near(*both(match), tol=0)


@case
def points_of_a_pyramid(device):
    like = torch.zeros(0, device=device)
    placed = points.place_points([(12, 16), (6, 8)], [8, 16], [40.0], like)
    goals = drawn_boxes(12).to(device)
    owner = points.assign_points(placed, goals, radius=1.5)
    ltrb = points.boxes_to_ltrb(placed.xy[:, None], goals).abs() + 1
    return placed, owner, points.box_centerness(ltrb), points.ltrb_to_boxes(placed.xy, ltrb[:, 0])


@case
def hardest_samples(device):
    losses, groups = drawn(200).abs().to(device), torch.arange(200, device=device) % 3
    return sampling.sample_hardest(losses, groups, count=20)


def test_balanced_samples():
    """Drawn on either device by a generator on either; what is drawn differs, the counts do not."""
    matches = (torch.arange(400) % 7 - 2).clamp(min=-2)
    for place in {DEVICE.type, "cpu"}:
        chance = torch.Generator(place).manual_seed(0)
        positive, background = sampling.sample_balanced(
            matches.to(DEVICE), count=64, positive_frac=0.25, generator=chance
        )
        assert len(positive) == 16
        assert len(background) == 48
        assert positive.device.type == background.device.type == DEVICE.type
        assert bool((matches.to(DEVICE)[positive] >= 0).all())
        assert bool((positive.diff() > 0).all())


# --- suppression -----------------------------------------------------------------------------


@pytest.mark.parametrize("groups", [0, 1, 5, 60])
@pytest.mark.parametrize("count", [0, 1, 30, 700])
def test_greedy_nms(count, groups):
    """With loops over groups, without any group, and where most boxes have no rival."""

    def keep(device):
        labels = (torch.arange(count) * 7 % max(1, groups)).to(device) if groups else None
        frames, scores = drawn_boxes(count).to(device), drawn(count, seed=5).to(device)
        return suppress.greedy_nms(frames, scores, labels, iou_thresh=0.4)

    assert_near(*both(keep), tol=0)


@pytest.mark.parametrize(
    "method", ["fast_nms", "fast_nms_across_classes", "top_k_nms", "classwise_nms"]
)
@pytest.mark.parametrize("classes", [1, 20])
def test_nms_of_class_scores(method, classes):
    def detect(device):
        scores = drawn(300, classes, seed=6).float().to(device)
        frames = drawn_boxes(300).to(device)
        if method == "classwise_nms":
            return suppress.classwise_nms(
                frames, scores, score_thresh=0.5, iou_thresh=0.5, count=40
            )
        call = getattr(suppress, method)
        position, label, score = call(frames, scores, iou_thresh=0.5, top_k=50, count=40)
        empty = score < 0  # whatever stands in such a place
        return position.masked_fill(empty, 0), label.masked_fill(empty, 0), score

    assert_near(*both(detect), tol=1e-6, what=method)


@case
def suppressed_masks(device):
    solid = disks(30).flatten(1).bool().to(device)
    labels, scores = torch.arange(30, device=device) % 2, drawn(30).abs().float().to(device)
    return (
        suppress.pairwise_mask_iou(solid),
        suppress.mask_nms(solid, labels, scores, iou_thresh=0.3),
        suppress.matrix_nms(solid, labels, scores),
        suppress.matrix_nms(solid, labels, scores, kernel="linear"),
        suppress.point_nms(drawn(2, 3, 9, 11).abs().to(device)),
        suppress.largest_better_overlap(drawn_boxes(20).to(device)),
    )


def test_mask_overlaps_in_mixed_precision():
    """Sums of more than 256 pixels are no bf16 numbers."""
    solid = disks(30).flatten(1).bool()
    with torch.autocast(DEVICE.type, torch.bfloat16):
        found = suppress.pairwise_mask_iou(solid.to(DEVICE))
    assert_near(found, suppress.pairwise_mask_iou(solid), tol=1e-7)


# --- regions and maps ------------------------------------------------------------------------


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


@case
def pooled_levels(device):
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


@case
def blended_bases(device):
    rois = drawn_rois(12).to(device)

    def mask(bases, attention):
        return blend.blend(blend.pool_bases(bases, rois, 14), attention)

    return with_gradients(mask, drawn(2, 4, 24, 32).to(device), drawn(12, 4, 5, 5).to(device))


@case
def assembled_prototypes(device):
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


@case
def atrous_by_batches(device):
    return with_gradients(
        lambda x, w: space_to_batch.atrous_conv(x, w, rate=3),
        drawn(2, 3, 17, 19).to(device),
        drawn(4, 3, 3, 3).to(device),
    )


@case
def convolved_points(device):
    levels = [drawn(2, 5, 8, 9).to(device), drawn(2, 5, 4, 5).to(device)]
    image, point = (torch.arange(30, device=device) % n for n in (2, 92))
    weight, bias = drawn(7, 5, 3, 3).to(device), drawn(7).to(device)
    return point_conv.convolve_at(levels, image, point, weight=weight, bias=bias)


@case
def grids_of_cells(device):
    labels = (torch.arange(2 * 33 * 47) % 5).view(2, 33, 47).to(device)
    return (
        with_gradients(
            lambda x: cell_grid.resize_grid(x, (33, 49), step=8), drawn(2, 3, 5, 7).to(device)
        ),
        cell_grid.labels_at_cells(labels, (5, 6), step=8.0, outside=255),
        cell_grid.labels_at_cells(labels, (5, 6)),
    )


# --- masks -----------------------------------------------------------------------------------


@case
def mask_targets(device):
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


@case
def coded_masks(device):
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


@case
def resized_masks(device):
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


@case
def polar_targets(device):
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


# --- label maps and clusters -----------------------------------------------------------------


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


@case
def clusters(device):
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
