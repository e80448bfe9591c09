"""YOLACT and YOLACT++: counts of the papers, assignment, losses, candidates, decoding."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from pixelwise.errors import UsageError
from pixelwise.export import export_program
from pixelwise.nn.deform import DeformConv
from pixelwise.nn.multibox import class_loss, match_targets
from pixelwise.nn.prototypes import mask_loss, sample_masks, semantic_loss
from pixelwise.ops import rle
from pixelwise.ops.boxes import pairwise_iou
from pixelwise.ops.mask_assembly import assemble_masks
from pixelwise.systems import SYSTEMS, create
from pixelwise.systems.yolact import YOLACT, Raw, YOLACTConfig
from pixelwise.types import ImageSize, InstanceTarget, MaskCrops

# With the semantic head that only training uses: the specification's numbers.
PARAMETERS = {
    "yolact_resnet50": 31_164_943,
    "yolact_resnet101": 50_157_071,
    "yolact_darknet53": 47_783_087,
    "yolact_resnet50_pascal": 30_734_623,
    "yolactpp_resnet50": 33_766_460,
    "yolactpp_resnet101": 52_571_142,
}


def tiny(**settings: Any) -> YOLACT:
    torch.manual_seed(0)
    sizes = {"backbone": "test_resnet", "channels": 16, "prototypes": 4, "num_classes": 3}
    return YOLACT(YOLACTConfig(**{**sizes, **settings}))


def square_target(
    boxes: list[list[int]], labels: list[int], side: int, *, crowds: int = 0
) -> InstanceTarget:
    """Masks that fill their boxes; the last ones may be crowds."""
    windows = torch.tensor(boxes, dtype=torch.int64).view(-1, 4)
    crops = MaskCrops((side, side), windows, torch.zeros(0, dtype=torch.uint8))
    pixels = torch.ones(int(crops.areas_of_windows.sum()), dtype=torch.uint8)
    return InstanceTarget(
        boxes=windows.float(),
        labels=torch.tensor(labels, dtype=torch.int64),
        masks=MaskCrops((side, side), windows, pixels),
        crowd=torch.arange(len(boxes)) >= len(boxes) - crowds,
    )


@pytest.mark.parametrize(("name", "count"), PARAMETERS.items())
def test_parameters_of_the_papers(name: str, count: int) -> None:
    with torch.device("meta"):
        net = SYSTEMS[name].system(SYSTEMS[name].config)
    assert sum(p.numel() for p in net.parameters()) == count


def test_parameters_of_mmdet() -> None:
    with torch.device("meta"):
        net = create("yolact_resnet50", conventions="mmdet")
    assert sum(p.numel() for p in net.parameters()) == 35_293_711


@pytest.mark.parametrize(
    ("name", "blocks"),
    [
        ("yolactpp_resnet101", [[0, 3], [0, 3, 6, 9, 12, 15, 18, 21], [0]]),
        ("yolactpp_resnet50", [[0, 1, 2, 3], [0, 1, 2, 3, 4, 5], [0, 1, 2]]),
    ],
)
def test_which_blocks_are_deformable(name: str, blocks: list[list[int]]) -> None:
    """Every third one of ResNet-101: 11 of 30; all 13 of the released ResNet-50."""
    with torch.device("meta"):
        backbone: Any = SYSTEMS[name].system(SYSTEMS[name].config).backbone
    for stage, expected in zip((2, 3, 4), blocks, strict=True):
        found = backbone.get_submodule(f"layer{stage}")
        assert [i for i, b in enumerate(found) if isinstance(b.conv2, DeformConv)] == expected
    assert not any(isinstance(b.conv2, DeformConv) for b in backbone.layer1)


@pytest.mark.parametrize(("name", "count"), [("yolact", 19_248), ("yolactpp", 57_744)])
def test_anchors_of_the_papers(name: str, count: int) -> None:
    with torch.device("meta"):
        net: Any = SYSTEMS[name].system(SYSTEMS[name].config)
        pyramid = net.pyramid(torch.zeros(1, 3, 550, 550))
    assert [m.shape[-1] for m in pyramid] == [69, 35, 18, 9, 5]
    fresh = YOLACT(YOLACTConfig(**{**SQUARE[name], "backbone": "test_resnet", "channels": 4}))
    anchors = fresh.place_anchors(pyramid, (550, 550))
    assert anchors.shape == (count, 4)
    sides = anchors[:, 2:] - anchors[:, :2]
    if name == "yolact":
        assert torch.equal(*(fresh.base_anchors[..., i + 2] for i in (0, 1)))
        torch.testing.assert_close(sides[:, 0], sides[:, 1], rtol=1e-5, atol=1e-4)
        expected = torch.tensor([24.0, 24 * 0.5**0.5, 24 * 2**0.5])
        torch.testing.assert_close(sides[:3, 0], expected)
    else:
        areas = torch.tensor([24.0 * 2 ** (i / 3) for i in (0, 0, 0, 1, 1, 1, 2, 2, 2)]) ** 2
        torch.testing.assert_close(sides[:9].prod(dim=1), areas)
        torch.testing.assert_close(sides[:3, 1] / sides[:3, 0], torch.tensor([1.0, 2.0, 0.5]))
    centre = (anchors[0, :2] + anchors[0, 2:]) / 2
    torch.testing.assert_close(centre, torch.full((2,), 0.5 * 550 / 69))


SQUARE: dict[str, dict[str, Any]] = {
    "yolact": {},
    "yolactpp": {"scales_per_octave": 3, "square_anchors": False},
}


def test_anchors_stay_in_pixels_on_an_oblong_input() -> None:
    net = tiny(square_anchors=False)
    pyramid = [torch.zeros(1, 1, n, 2 * n) for n in (8, 4, 2, 1, 1)]
    anchors = net.place_anchors(pyramid, (64, 128))
    sides = anchors[:, 2:] - anchors[:, :2]
    torch.testing.assert_close(sides[0], torch.tensor([24.0, 24.0]))
    torch.testing.assert_close((anchors[3, :2] + anchors[3, 2:]) / 2, torch.tensor([12.0, 4.0]))


def test_anchors_of_openmmlab_stand_as_in_its_training_size() -> None:
    """At 550 pixels cells divide the input; at any other size they keep the distance."""
    net = tiny(conventions="mmdet", square_anchors=False)
    pyramid = [torch.zeros(1, 1, n, n + 1) for n in (18, 9, 5, 3, 2)]
    anchors = net.place_anchors(pyramid, (138, 145))
    centres = (anchors[:, :2] + anchors[:, 2:]) / 2
    pitch = 550 / 69
    torch.testing.assert_close(centres[0], torch.tensor([pitch / 2, pitch / 2]))
    torch.testing.assert_close(centres[18 * 19 * 3 - 1], torch.tensor([18.5, 17.5]) * pitch)
    torch.testing.assert_close(centres[-1], torch.tensor([2.5, 1.5]) * 110)
    whole = [torch.zeros(1, 1, n, n) for n in (69, 35, 18, 9, 5)]
    own = tiny(square_anchors=False).place_anchors(whole, (550, 550))
    torch.testing.assert_close(net.place_anchors(whole, (550, 550)), own)


def test_matching_on_a_drawn_case() -> None:
    anchors = torch.tensor(
        [
            [0.0, 0, 10, 10],  # the first object itself
            [0, 0, 10, 22],  # IoU 10/22 = .4545: neither
            [0, 0, 10, 26],  # 10/26 = .385: background
            [40, 40, 44, 44],  # overlaps the second most, though only by .16
            [60, 0, 68, 8],  # inside the crowd
            [90, 90, 95, 95],  # far from everything
        ]
    )
    target = square_target(
        [[0, 0, 10, 10], [40, 40, 50, 50], [58, 0, 80, 20]], [2, 1, 0], 100, crowds=1
    )
    assert match_targets(anchors, [target])[0].tolist() == [0, -2, -1, 1, -2, -1]


def test_an_image_without_objects_is_all_background_but_for_its_crowds() -> None:
    anchors = torch.tensor([[0.0, 0, 10, 10], [40, 40, 50, 50]])
    crowd = square_target([[0, 0, 20, 20]], [0], 64, crowds=1)
    empty = square_target([], [], 64)
    assert match_targets(anchors, [crowd, empty]).tolist() == [[-2, -1], [-1, -1]]


def test_two_negatives_that_look_most_like_objects_are_learnt_from() -> None:
    """One positive, ratio 3: the hardest three of the five negatives; the ignored never counts."""
    logits = torch.zeros(1, 7, 3)
    logits[0, :, 2] = torch.tensor([0.0, 5.0, -1.0, 4.0, -2.0, -9.0, 3.0])
    matches = torch.tensor([[0, -1, -1, -1, -1, -2, -1]])
    target = square_target([[0, 0, 4, 4]], [1], 8)
    rows = logits[0, [0, 2, 4, 6]]
    expected = F.cross_entropy(rows, torch.tensor([1, 2, 2, 2]), reduction="sum")
    torch.testing.assert_close(class_loss(logits, matches, [target]), expected)


def masks_of(box: list[int], side: int, *, outside: float) -> Tensor:
    """The mask loss of one object on a prototype that is 0.7 in its box."""
    target = square_target([box], [0], side)
    prototypes = torch.full((1, 1, side // 4, side // 4), outside)
    x0, y0, x1, y1 = (v // 4 for v in box)
    prototypes[:, :, y0:y1, x0:x1] = 0.7
    samples = sample_masks(
        prototypes,
        torch.ones(1, 1, 1),
        torch.zeros(1, 1, dtype=torch.int64),
        [target],
        size=(side, side),
        limit=100,
    )
    return mask_loss(samples)


def test_mask_loss_is_a_mean_over_the_box_and_its_margin() -> None:
    """Inside the box -log sigmoid; the margin of one cell is background, -log(1 - sigmoid)."""
    inside, outside = F.softplus(torch.tensor(-0.7)), F.softplus(torch.tensor(0.7))
    box, cells = [16, 16, 48, 48], 8  # in cells 4..12 of 32
    ring = (cells + 2) ** 2 - cells**2
    expected = inside + outside * ring / cells**2
    torch.testing.assert_close(masks_of(box, 128, outside=0.7), expected)


def test_the_area_weight_keeps_scale_out_of_the_mask_loss() -> None:
    small = masks_of([64, 64, 128, 96], 512, outside=-30.0)
    large = masks_of([128, 128, 256, 192], 1024, outside=-30.0)
    torch.testing.assert_close(small, large)
    torch.testing.assert_close(small, F.softplus(torch.tensor(-0.7)))


def test_too_many_positives_are_drawn_and_weighed_up() -> None:
    target = square_target([[8, 8, 40, 40]], [0], 64)
    matches = torch.zeros(1, 50, dtype=torch.int64)
    given = (torch.full((1, 1, 16, 16), 0.3), torch.ones(1, 50, 1), matches, [target])
    every = mask_loss(sample_masks(*given, size=(64, 64), limit=100))
    some = sample_masks(*given, size=(64, 64), limit=7)
    assert len(some.logits) == 7
    torch.testing.assert_close(mask_loss(some), every)


def test_semantic_loss_of_overlapping_classes() -> None:
    """A cell may be of two classes, is counted once within one, and crowds teach nothing."""
    boxes = [[0, 0, 16, 16], [8, 0, 24, 16], [0, 0, 16, 16], [32, 32, 64, 64]]
    target = square_target(boxes, [0, 0, 1, 2], 64, crowds=1)
    wanted = torch.zeros(3, 8, 8)
    wanted[0, :2, :3] = 1
    wanted[1, :2, :2] = 1
    logits = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    expected = F.binary_cross_entropy_with_logits(logits[0], wanted, reduction="sum") / 64
    torch.testing.assert_close(semantic_loss(logits, [target], (64, 64)), expected)


def test_a_perfect_mask_has_an_iou_of_one_to_learn() -> None:
    net = tiny(with_rescoring=True)
    assert net.rescoring is not None
    target = square_target([[32, 32, 128, 128], [0, 0, 16, 16]], [0, 1], 256)
    prototypes = torch.full((1, 1, 64, 64), -20.0)
    prototypes[0, 0, 8:32, 8:32] = 20.0
    samples = sample_masks(
        prototypes,
        torch.ones(1, 2, 1),
        torch.tensor([[0, 1]]),  # the second has 16 cells: too small to learn
        [target],
        size=(256, 256),
        limit=100,
    )
    with torch.no_grad():
        for parameter in net.rescoring.parameters():
            parameter.zero_()
        net.rescoring.classify.bias.copy_(torch.tensor([0.25, 9.0, 9.0]))
        torch.testing.assert_close(net.rescoring.loss(samples), torch.tensor(0.5 * 0.75**2))


def test_loss_names_and_gradients_of_the_train_only_head() -> None:
    net = tiny(anchor_sizes=(8, 16, 24, 32, 48), with_rescoring=True).train()
    images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    losses = net.loss(images, [square_target([[4, 6, 36, 44]], [1], 64)])
    assert set(losses) == {"class", "box", "mask", "semantic", "mask_iou"}
    losses["semantic"].backward()
    assert net.semantic.weight.grad is not None


def test_the_semantic_head_is_absent_from_the_inference_graph() -> None:
    net = tiny().eval()
    images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before = net(images)
        net.semantic.weight.fill_(torch.nan)
        assert all(torch.equal(a, b) for a, b in zip(before, net(images), strict=True))


def made_up(net: YOLACT, count: int, seed: int) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    corner = torch.rand(1, count, 2, generator=g) * 40
    boxes = torch.cat([corner, corner + 10 + 20 * torch.rand(1, count, 2, generator=g)], dim=2)
    probs = torch.rand(1, count, net.cfg.num_classes, generator=g) * 0.2
    return boxes, probs


def test_an_anchor_is_a_candidate_of_all_classes_if_it_is_of_one() -> None:
    probs = torch.tensor([[[0.2, 0.01, 0.0], [0.04, 0.04, 0.04]]])
    ours = tiny()._candidates(probs, [1])
    assert (ours >= 0).tolist() == [[[True] * 3, [False] * 3]]
    theirs = tiny(conventions="mmdet", anchor_ratios=(1.0,))._candidates(probs, [2])
    assert (theirs >= 0).tolist() == [[[True, False, False], [False] * 3]]


def test_mmdet_takes_the_best_thousand_of_a_level() -> None:
    net = tiny(conventions="mmdet", anchor_ratios=(1.0,))
    probs = 0.1 + 0.8 * torch.rand(1, 1500, 3, generator=torch.Generator().manual_seed(0))
    kept = (net._candidates(probs, [1400, 100]) >= 0).any(dim=-1)[0]
    best = probs[0].amax(dim=-1)
    assert int(kept[:1400].sum()) == 1000
    assert best[:1400][kept[:1400]].min() > best[:1400][~kept[:1400]].max()
    assert kept[1400:].all()


def test_fast_suppression_keeps_part_of_what_greedy_does() -> None:
    rows = {}
    for kind in ("fast", "greedy"):
        net = tiny(suppression=kind, score_thresh=0.0, detections_per_image=10_000)
        boxes, probs = made_up(net, 60, 1)
        found = net._suppress(
            boxes[0], probs[0], torch.zeros(60, 4), torch.zeros(4, 16, 16), size=(64, 64)
        )
        kept = found[3]
        rows[kind] = {tuple(r) for r in torch.cat([found[0], found[2][:, None]], 1)[kept].tolist()}
    assert rows["fast"] < rows["greedy"]


def raw_of(boxes: list[list[float]], prototypes: Tensor, coefficients: Tensor) -> Raw:
    n = len(boxes)
    return Raw(
        boxes=torch.tensor([boxes]),
        scores=torch.linspace(0.9, 0.5, n)[None],
        labels=torch.zeros(1, n, dtype=torch.int64),
        valid=torch.ones(1, n, dtype=torch.bool),
        mask_scores=torch.linspace(0.1, 0.7, n)[None],
        coefficients=coefficients[None],
        prototypes=prototypes[None],
    )


def test_decode_equals_resizing_the_whole_stack() -> None:
    g = torch.Generator().manual_seed(0)
    prototypes = torch.randn(4, 16, 20, generator=g)
    coefficients = torch.randn(3, 4, generator=g)
    boxes = [[4.0, 6.0, 50.0, 60.0], [-9.0, 20.0, 30.0, 70.0], [40.0, 3.0, 78.5, 33.0]]
    size = ImageSize(original=(97, 131), content=(64, 80), input=(64, 80))
    found = tiny().decode(raw_of(boxes, prototypes, coefficients), [size])[0]
    cells = torch.tensor(boxes) / 4
    soft = assemble_masks(prototypes, coefficients, cells)
    dense = F.interpolate(soft[None], (97, 131), mode="bilinear")[0] > 0.5
    assert dense.any(dim=(1, 2)).all()
    assert (rle.decode(found.masks) != dense.numpy()).sum() <= 2  # rounding at the threshold
    scale = torch.tensor([131 / 80, 97 / 64]).repeat(2)
    limit = torch.tensor([131.0, 97.0]).repeat(2)
    expected = torch.minimum((torch.tensor(boxes) * scale).clamp(min=0), limit)
    torch.testing.assert_close(found.boxes, expected)


def test_decode_leaves_the_padding_out() -> None:
    """Content fills the upper left of the input; the same mask lands at the same place."""
    prototypes = torch.full((4, 16, 16), -8.0)
    prototypes[:, 2:6, 2:6] = 8.0
    size = ImageSize(original=(80, 64), content=(40, 32), input=(64, 64))
    raw = raw_of([[8.0, 8.0, 24.0, 24.0], [40.0, 2.0, 60.0, 20.0]], prototypes, torch.ones(2, 4))
    found = tiny().decode(raw, [size])[0]
    assert len(found) == 1, "the second lies in the padding"
    np.testing.assert_array_equal(rle.tight_boxes(found.masks), [[16, 16, 48, 48]])


def test_rescoring_ranks_masks_and_leaves_them() -> None:
    raw = raw_of([[8.0, 8.0, 24.0, 24.0]] * 2, torch.ones(4, 16, 16), torch.ones(2, 4))
    size = ImageSize.same((64, 64))
    plain = tiny().decode(raw, [size])[0]
    scored = tiny(with_rescoring=True).decode(raw, [size])[0]
    assert plain.mask_scores is None
    torch.testing.assert_close(scored.mask_scores, raw.mask_scores[0])
    torch.testing.assert_close(scored.scores, plain.scores)
    np.testing.assert_array_equal(rle.decode(scored.masks), rle.decode(plain.masks))


def test_no_detection_at_all() -> None:
    net = tiny(score_thresh=1.0, with_rescoring=True).eval()
    with torch.no_grad():
        raw = net(torch.zeros(1, 3, 64, 64))
    assert not raw.valid.any()
    assert not raw.boxes.any()
    found = net.decode(raw, [ImageSize.same((64, 64))])[0]
    assert len(found) == len(found.masks) == 0


@pytest.mark.parametrize("size", [(1, 1), (33, 70)])
def test_any_size(size: tuple[int, int]) -> None:
    net = tiny(with_rescoring=True, score_thresh=0.0).eval()
    with torch.no_grad():
        raw = net(torch.zeros(1, 3, *size))
    assert net.decode(raw, [ImageSize.same(size)])[0].size == size


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"anchor_sizes": (8, 16)}, "5 levels"),
        ({"deform_interval": 3}, "deformable"),
        ({"backbone": "resnet18", "deform_interval": 3}, "deformable"),
        ({"suppression": "soft"}, "suppression"),
        ({"conventions": "torchvision"}, "conventions"),
    ],
)
def test_what_cannot_be_built_is_said(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        tiny(**settings)


@pytest.mark.slow
def test_the_deformable_network_exports() -> None:
    net = YOLACT(YOLACTConfig(backbone="resnet50", channels=8, deform_interval=3, num_classes=2))
    for module in net.modules():
        if isinstance(module, DeformConv):
            torch.nn.init.normal_(module.offset_mask.weight, std=0.1)
    images = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    program: Any = export_program(net, images, dynamic="none").module()
    with torch.no_grad():
        for a, b in zip(program(images), net(images), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_iou_of_a_stack_is_that_of_its_parts() -> None:
    g = torch.Generator().manual_seed(0)
    boxes = torch.rand(3, 5, 4, generator=g).sort(dim=-1).values[..., [0, 1, 2, 3]]
    stacked = pairwise_iou(boxes, boxes)
    for part, expected in zip(boxes, stacked, strict=True):
        assert torch.equal(pairwise_iou(part, part), expected)
