"""PolarMask: what its points learn, what becomes of perfect predictions, variants and traps."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pixelwise.errors import UsageError
from pixelwise.export import export_program
from pixelwise.ops import rle
from pixelwise.ops.contours import largest_contours, subdivide
from pixelwise.ops.matching import BACKGROUND, IGNORED
from pixelwise.ops.points import Points, place_points
from pixelwise.ops.polar import NO_RAY, contour_rays, draw_rays
from pixelwise.systems import create
from pixelwise.systems.polarmask import (
    Dense,
    PolarMask,
    PolarMaskConfig,
    Raw,
    assign_targets,
)
from pixelwise.types import ImageSize, InstanceTarget

SIDE = 128
TINY: dict[str, Any] = {
    "num_classes": 3,
    "backbone": "test_resnet",
    "channels": 16,
    "head_convs": 1,
    "strides": (8, 16, 32),
    "range_bounds": (32, 64),
    "detections_per_image": 8,
}
GRIDS = [(16, 16), (8, 8), (4, 4)]


def tiny(**changes: Any) -> PolarMask:
    torch.manual_seed(0)
    return PolarMask(PolarMaskConfig(**{**TINY, **changes}))


def points() -> Points:
    return place_points(GRIDS, (8, 16, 32), (32.0, 64.0), torch.zeros(0))


def disc(x: float, y: float, radius: float) -> np.ndarray:
    rows, columns = np.mgrid[:SIDE, :SIDE]
    return np.hypot(columns - x, rows - y) <= radius


def target(masks: list[np.ndarray], labels: list[int], crowd: list[bool] | None = None) -> Any:
    dense = np.stack(masks) if masks else np.zeros((0, SIDE, SIDE), bool)
    crops = rle.crops_from_dense(torch.from_numpy(dense.astype(np.uint8)))
    return InstanceTarget(
        boxes=crops.windows.float(),
        labels=torch.tensor(labels, dtype=torch.int64),
        masks=crops,
        crowd=torch.tensor(crowd or [False] * len(labels), dtype=torch.bool),
    )


def scene() -> InstanceTarget:
    return target([disc(30, 28, 16), disc(84, 80, 30)], [0, 2])


@pytest.mark.parametrize(
    ("backbone", "expected"),
    [("resnet50", 34_739_651), ("resnet101", 53_731_779)],
)
def test_published_parameter_counts(backbone: str, expected: int) -> None:
    """The original's norms are frozen, but their factors and offsets are parameters."""
    with torch.device("meta"):
        net = create("polarmask", backbone=backbone, backbone_norm="batch")
    assert sum(p.numel() for p in net.parameters()) == expected


def test_centerness_stands_on_the_class_tower() -> None:
    """Unlike FCOS in its improved form, whose centerness is an output of the box tower."""
    head = tiny().head
    towers = {name: set(tower.outputs) for name, tower in head.towers.items()}
    assert towers == {
        "category": {"classify", "centerness"},
        "box": {"regress"},
        "mask": {"rays"},
    }
    assert set(head.scales) == {"regress", "rays"}
    assert all(conv.bias is None for conv in (t.tower[0].conv for t in head.towers.values()))


def test_training_points_lie_around_the_mass_centre() -> None:
    """A heavy left part: the mass centre is far from the middle of the box."""
    mask = np.zeros((SIDE, SIDE), bool)
    mask[40:80, 20:44] = True
    mask[58:62, 44:100] = True
    around: dict[str, Tensor] = {}
    for centre in ("mass", "box"):
        cfg = PolarMaskConfig(**{**TINY, "centre": centre, "range_bounds": (300, 400)})
        wide = points()._replace(ranges=torch.tensor([-1.0, math.inf]).expand(len(points().xy), 2))
        found = assign_targets(wide, [target([mask], [1])], cfg)
        around[centre] = wide.xy[found.matches[0] == 0]
        fine = around[centre][wide.strides[found.matches[0] == 0] == 8]
        assert 1 <= len(fine) <= 9
        around[centre] = fine
    assert around["mass"][:, 0].max() < 55
    assert around["box"][:, 0].min() > 45


def test_targets_of_a_hand_made_scene() -> None:
    found = assign_targets(points(), [scene(), target([], [])], PolarMaskConfig(**TINY))
    assert found.matches.shape == (2, len(points().xy))
    assert (found.matches[1] == BACKGROUND).all()
    assert (found.found.image == 0).all()
    assert set(found.found.owner.tolist()) == {0, 1}
    for point, owner, ltrb, rays in zip(
        found.found.point, found.found.owner, found.ltrb, found.rays, strict=True
    ):
        x, y = points().xy[point].tolist()
        # The box ends at the last pixel: 30 + 16 and 84 + 30.
        cx, cy, radius = [(30, 28, 16), (84, 80, 30)][int(owner)]
        expected = [x - (cx - radius), y - (cy - radius), cx + radius - x, cy + radius - y]
        assert ltrb.tolist() == expected
        if math.hypot(x - cx, y - cy) > radius - 2:  # in the box, but hardly in the disc
            continue
        # A ray may end up to 3 degrees beside its angle, and pixels are whole.
        for ray, length in enumerate(rays.tolist()):
            near = [to_circle(cx - x, cy - y, radius, 10 * ray + k) for k in range(-4, 5)]
            if length < 1:  # so near that the pixels of the outline are 7 degrees apart
                assert max(near) < 12
            else:
                assert min(near) - 1 <= length <= max(near) + 1


def to_circle(cx: float, cy: float, radius: float, degrees: float) -> float:
    """Distance from the origin inside a circle at (cx, cy) to it, by the law of cosines."""
    across, along = math.sin(math.radians(degrees)), math.cos(math.radians(degrees))
    middle, aside = cx * across + cy * along, cx * along - cy * across
    return middle + math.sqrt(radius**2 - aside**2)


def test_crowds_are_ignored_and_empty_masks_left_out() -> None:
    empty = np.zeros((SIDE, SIDE), bool)
    given = target([disc(30, 28, 16), empty, disc(84, 80, 30)], [0, 1, 2], [True, False, False])
    found = assign_targets(points(), [given], PolarMaskConfig(**TINY))
    assert set(found.matches[0].tolist()) == {BACKGROUND, IGNORED, 2}
    inside = points().xy[found.matches[0] == IGNORED]
    assert ((inside >= 12) & (inside < 47)).all()


def test_small_objects_need_points_between_the_pixels_of_their_outline() -> None:
    """Seen from 5 pixels away, pixels are 11 degrees apart and a ray looks 3 to each side."""
    given = [target([disc(36, 36, 5)], [0])]
    fine = points()._replace(ranges=torch.tensor([-1.0, 99.0]).expand(len(points().xy), 2))
    coarse, dense = (
        assign_targets(fine, given, PolarMaskConfig(**{**TINY, "conventions": name}))
        for name in ("released", "fine")
    )
    assert len(coarse.rays) == len(dense.rays) > 0
    assert (coarse.rays.amin(dim=1) == np.float32(NO_RAY)).all()
    middle = (fine.xy[dense.found.point] == 36).all(dim=1)
    assert (dense.rays[middle] - 5).abs().max() < 1


def test_losses_are_normalised_as_released() -> None:
    """Classes by positives plus images; centerness by positives; the rest by centerness."""
    net = tiny().eval()
    images, targets = torch.randn(2, 3, SIDE, SIDE), [scene(), target([], [])]
    with torch.no_grad():
        dense, where, _ = net.predict(images)
        flat = dense._replace(
            logits=torch.zeros_like(dense.logits), centerness=torch.zeros_like(dense.centerness)
        )
        wanted = assign_targets(where, targets, net.cfg)
        net.predict = lambda _: (flat, where, [])  # type: ignore[method-assign]
        losses = net.loss(images, targets)
    count = len(wanted.rays)
    cells = flat.logits.numel()
    focal = 0.25 * math.log(2) * (0.25 * count + 0.75 * (cells - count))
    assert losses["class"].item() == pytest.approx(focal / (count + 2), rel=1e-5)
    assert losses["centerness"].item() == pytest.approx(math.log(2), rel=1e-5)


def perfect(net: PolarMask, targets: list[InstanceTarget]) -> Dense:
    """What the head would say if it had learnt everything."""
    wanted = assign_targets(points(), targets, net.cfg)
    shape = wanted.matches.shape
    dense = Dense(
        torch.full((*shape, 3), -9.0),
        torch.full(shape, -9.0),
        torch.ones(*shape, 4),
        torch.ones(*shape, net.cfg.rays),
    )
    where = (wanted.found.image, wanted.found.point)
    labels = [targets[i].labels[j] for i, j in zip(where[0], wanted.found.owner, strict=True)]
    dense.logits[(*where, torch.tensor(labels))] = 9.0
    centerness = (wanted.rays.amin(1) / wanted.rays.amax(1)).sqrt()
    dense.centerness[where] = centerness.logit()
    dense.ltrb[where], dense.rays[where] = wanted.ltrb, wanted.rays
    return dense


@pytest.mark.parametrize("kind", ["linear", "squared", "per_ray"])
def test_perfect_predictions_cost_nothing(kind: str) -> None:
    net = tiny(ray_loss=kind)
    dense = perfect(net, [scene()])
    net.predict = lambda _: (dense, points(), [256, 64, 16])  # type: ignore[method-assign]
    losses = net.loss(torch.zeros(1, 3, SIDE, SIDE), [scene()])
    assert losses["box"].item() == pytest.approx(0, abs=1e-6)
    assert losses["mask"].item() == pytest.approx(0, abs=1e-6)
    assert losses["class"].item() < 1e-3


@pytest.mark.parametrize("boxes_from", ["branch", "rays"])
def test_perfect_predictions_become_the_objects(boxes_from: str) -> None:
    net = tiny(boxes_from=boxes_from).eval()
    dense = perfect(net, [scene()])
    net.predict = lambda _: (dense, points(), [256, 64, 16])  # type: ignore[method-assign]
    raw = net(torch.zeros(1, 3, SIDE, SIDE))
    (found,) = net.decode(raw, [ImageSize.same((SIDE, SIDE))])
    assert sorted(found.labels.tolist()) == [0, 2]
    for label, box, mask in zip(
        found.labels.tolist(), found.boxes, rle.decode(found.masks), strict=True
    ):
        which = [0, 2].index(label)
        # Right and bottom are exclusive again; rays may miss an extreme pixel.
        slack = 0.0 if boxes_from == "branch" else 2.0
        assert (box - scene().boxes[which]).abs().max() <= slack + 1e-4
        wanted = rle.dense_crops(scene().masks)[which].numpy()
        assert (mask & wanted).sum() / (mask | wanted).sum() > 0.93


def one_point(net: PolarMask, *, centerness: float, point: int = 40) -> Raw:
    dense = Dense(
        torch.full((1, 336, 3), -9.0),
        torch.full((1, 336), centerness),
        torch.full((1, 336, 4), 5.0),
        torch.full((1, 336, net.cfg.rays), 5.0),
    )
    dense.logits[0, point, 1] = 3.0
    net.predict = lambda _: (dense, points(), [256, 64, 16])  # type: ignore[method-assign]
    return net.eval()(torch.zeros(1, 3, SIDE, SIDE))


def test_scores_are_products_with_the_raised_centerness() -> None:
    prob, centre = (1 / (1 + math.exp(-x)) for x in (3.0, 2.0))
    raised = one_point(tiny(), centerness=2.0)
    assert raised.scores[0, 0].item() == pytest.approx(prob * (centre + 0.5))
    assert raised.scores[0, 0] > 1  # released behaviour
    plain = one_point(tiny(centerness_offset=0.0), centerness=2.0)
    assert plain.scores[0, 0].item() == pytest.approx(prob * centre)


def test_the_threshold_is_on_the_class_alone() -> None:
    assert one_point(tiny(), centerness=-20.0).valid.sum() == 1
    assert one_point(tiny(score_thresh=0.96), centerness=9.0).valid.sum() == 0


def test_boxes_count_their_last_pixel() -> None:
    raw = one_point(tiny(), centerness=0.0)
    x, y = points().xy[40].tolist()
    assert raw.boxes[0, 0].tolist() == [x - 5, y - 5, x + 6, y + 6]
    corner = one_point(tiny(), centerness=0.0, point=0)  # (4, 4): clipped to the first pixel
    assert corner.boxes[0, 0].tolist() == [0, 0, 10, 10]


def test_only_the_best_points_of_a_level_are_candidates() -> None:
    net = tiny(pre_nms=1, iou_thresh=1.0).eval()
    dense = Dense(
        torch.zeros(1, 336, 3), torch.zeros(1, 336), torch.ones(1, 336, 4), torch.ones(1, 336, 36)
    )
    dense.centerness[0, [7, 300, 335]] = 1.0
    net.predict = lambda _: (dense, points(), [256, 64, 16])  # type: ignore[method-assign]
    raw = net(torch.zeros(1, 3, SIDE, SIDE))
    found = {tuple(xy) for xy in raw.centres[raw.valid].tolist()}
    assert found == {tuple(points().xy[i].tolist()) for i in (7, 300, 335)}


def test_ends_are_clamped_before_they_are_scaled() -> None:
    """The content's last pixel lands before the picture's: doubled, 63 is 126, not 127."""
    size = ImageSize(original=(128, 128), content=(64, 64), input=(64, 96))
    masks = draw_rays(torch.tensor([[50.0, 32.0]]), torch.full((1, 36), 30.0), size, aligned=False)
    x0, y0, x1, _ = masks.windows[0].tolist()
    assert x1 == 127
    assert x0 == 40  # 2 * (50 - 30)
    assert y0 == 4


def test_aligned_drawing_loses_neither_half_a_pixel_nor_its_place() -> None:
    """A disc seen at a third of its size, from its own rays; truncation pushes it to one side."""
    rows, columns = np.mgrid[:300, :300]
    truth = np.hypot(columns - 151.0, rows - 133.0) <= 60.5
    small = truth[1::3, 1::3]  # the middle pixel of every block of three
    contours = largest_contours(
        rle.crops_from_dense(torch.from_numpy(small[None].astype(np.uint8))), torch.arange(1)
    )
    centre = torch.tensor([[50.0, 44.0]])
    rays = contour_rays(subdivide(contours, 4), centre, torch.zeros(1).long(), rays=36)
    size = ImageSize(original=(300, 300), content=(100, 100), input=(100, 100))
    ious: dict[bool, float] = {}
    for aligned in (False, True):
        mask = rle.decode(draw_rays(centre, rays, size, aligned=aligned))[0] != 0
        ious[aligned] = (mask & truth).sum() / (mask | truth).sum()
        x, y = (np.argwhere(mask).mean(axis=0) - np.argwhere(truth).mean(axis=0))[::-1]
        assert (max(abs(x), abs(y)) < 0.5) == aligned, (aligned, x, y)
    assert ious[True] > 0.97
    assert ious[False] < 0.95


def test_aligned_ends_stay_in_the_picture() -> None:
    for original in ((31, 57), (300, 500)):
        size = ImageSize(original=original, content=(64, 117), input=(64, 128))
        rays = torch.full((1, 36), 500.0)
        masks = draw_rays(torch.tensor([[60.0, 30.0]]), rays, size, aligned=True)
        assert masks.windows.tolist() == [[0, 0, original[1], original[0]]]


def test_rays_that_meet_nothing_pull_the_outline_to_the_centre() -> None:
    rays = torch.full((1, 36), 20.0)
    rays[0, :9] = NO_RAY  # down to right
    size = ImageSize.same((80, 80))
    mask = rle.decode(draw_rays(torch.tensor([[40.0, 40.0]]), rays, size, aligned=False))[0]
    assert mask[40, 40]
    assert not mask[50, 50]
    assert mask[30, 30]


@pytest.mark.parametrize("rays", [3, 18, 50, 72])
def test_any_number_of_rays(rays: int) -> None:
    net = tiny(rays=rays)
    losses = net.loss(torch.randn(1, 3, SIDE, SIDE), [scene()])
    assert all(value.isfinite() for value in losses.values())
    assert net.eval()(torch.randn(1, 3, SIDE, SIDE)).rays.shape == (1, 8, rays)


@pytest.mark.parametrize("strides", [(4, 8), (4, 8, 16, 32, 64), (16, 32), (8, 16, 32, 64, 128)])
def test_the_pyramid_follows_the_strides(strides: tuple[int, ...]) -> None:
    net = tiny(strides=strides, range_bounds=tuple(4.0 * s for s in strides[:-1]))
    dense, where, cells = net.predict(torch.randn(1, 3, 100, 130))
    assert cells == [math.ceil(100 / s) * math.ceil(130 / s) for s in strides]
    assert dense.rays.shape[1] == len(where.xy) == sum(cells)
    assert where.strides.unique().tolist() == list(strides)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"strides": (8, 16, 64)}, "doubles"),
        ({"strides": (64, 128, 256)}, "4, 8, 16, 32"),
        ({"strides": ()}, "doubles"),
        ({"range_bounds": (32,)}, "2 range_bounds"),
        ({"conventions": "coarse"}, "released, fine"),
        ({"rays": 2}, "from 3 to 360"),
        ({"rays": 361}, "from 3 to 360"),
        ({"ray_loss": "l1"}, "linear, squared, per_ray"),
        ({"centre": "middle"}, "mass, box"),
    ],
)
def test_settings_that_cannot_be_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        PolarMaskConfig(**{**TINY, **changes})


def test_lengths_in_strides_are_those_in_pixels_times_the_stride() -> None:
    images = torch.randn(1, 3, SIDE, SIDE)
    pixels, where, _ = tiny().eval().predict(images)
    strides, _, _ = tiny(conventions="fine").eval().predict(images)
    for a, b in ((pixels.rays, strides.rays), (pixels.ltrb, strides.ltrb)):
        torch.testing.assert_close(b, a * where.strides[:, None])
    assert torch.equal(pixels.logits, strides.logits)


def test_huge_logits_stay_finite() -> None:
    net = tiny()
    with torch.no_grad():
        net.head.towers["mask"].outputs["rays"].bias.fill_(1e4)
        net.head.towers["box"].outputs["regress"].bias.fill_(1e4)
    losses = net.loss(torch.randn(1, 3, SIDE, SIDE), [scene()])
    assert all(value.isfinite() for value in losses.values())
    raw = net.eval()(torch.randn(1, 3, SIDE, SIDE))
    assert raw.boxes.isfinite().all()


@pytest.mark.slow
def test_an_exported_graph_and_decode_give_the_same_detections() -> None:
    net = tiny(score_thresh=0.0).eval()
    images = torch.randn(2, 3, 96, 64)
    program = export_program(net, images, dynamic="none")
    sizes = [ImageSize.same((96, 64))] * 2
    with torch.no_grad():
        ours, theirs = net.decode(net(images), sizes), net.decode(program.module()(images), sizes)
    for a, b in zip(ours, theirs, strict=True):
        assert len(a) > 3
        assert torch.equal(a.labels, b.labels)
        torch.testing.assert_close(a.boxes, b.boxes)
        torch.testing.assert_close(a.scores, b.scores)
        assert (rle.decode(a.masks) == rle.decode(b.masks)).all()
