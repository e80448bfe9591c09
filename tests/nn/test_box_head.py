import math

import pytest
import torch

from pixelwise.nn.box_head import TRUNKS, BoxHead, BoxOutput, ConvTrunk, MeanTrunk
from pixelwise.nn.conventions import CONVENTIONS
from pixelwise.nn.regions import Proposals, Regions, match_objects, sample_regions
from pixelwise.ops.boxes import encode_boxes
from pixelwise.ops.matching import BACKGROUND, IGNORED
from pixelwise.types import InstanceTarget, MaskCrops
from tests.fixtures import fixture_params, load_fixture

RULES = CONVENTIONS["detectron2"]
K = 3


def build(conventions=RULES, **options):
    torch.manual_seed(0)
    return BoxHead(MeanTrunk(8), K, conventions, **options)


def proposals(boxes, valid=None):
    boxes = torch.tensor(boxes, dtype=torch.float32)[None]
    mask = torch.ones(1, boxes.shape[1], dtype=torch.bool)
    if valid is not None:
        mask[0] = torch.tensor(valid)
    return Proposals(boxes, torch.zeros(1, boxes.shape[1]), mask)


def says(rows, deltas=None):
    """Predictions with these class probabilities (foreground only) and no regression."""
    probs = torch.tensor(rows)
    logits = torch.cat([probs, 1 - probs.sum(1, keepdim=True)], dim=1).clamp(min=1e-9).log()
    return BoxOutput(logits, torch.zeros(len(rows), 4 * K) if deltas is None else deltas)


def regions(labels, rois, gt):
    return Regions(
        torch.cat([torch.zeros(len(rois), 1), torch.tensor(rois, dtype=torch.float32)], dim=1),
        torch.tensor(labels),
        torch.tensor(gt, dtype=torch.float32),
        torch.zeros(len(labels), dtype=torch.int64),
        MaskCrops.empty((64, 64)),
        K,
    )


def make_target(boxes, labels, crowd=None, size=(64, 64)):
    boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    return InstanceTarget(
        boxes=boxes,
        labels=torch.tensor(labels, dtype=torch.int64),
        masks=MaskCrops(size, boxes.long(), torch.zeros(0, dtype=torch.uint8)),
        crowd=torch.tensor(crowd or [False] * len(labels), dtype=torch.bool),
    )


@pytest.mark.parametrize(
    ("kind", "norm", "count"),
    [
        ("2fc", None, 12544 * 1024 + 1024 + 1024 * 1024 + 1024),
        ("4conv1fc", "group", 4 * (9 * 256 * 256 + 512) + 12544 * 1024 + 1024),
    ],
)
def test_parameters_of_the_published_trunks(kind, norm, count):
    convs, fcs = TRUNKS[kind]
    with torch.device("meta"):
        trunk = ConvTrunk(256, 7, convs=convs, fcs=fcs, norm=norm)
    assert sum(p.numel() for p in trunk.parameters()) == count


def test_the_flatten_order_is_channel_row_column():
    trunk = ConvTrunk(2, 3, fcs=1, out_features=4)
    features = torch.randn(5, 2, 3, 3)
    expected = torch.relu(features.reshape(5, 18) @ trunk.fcs[0].weight.T + trunk.fcs[0].bias)
    torch.testing.assert_close(trunk(features), expected)


def test_losses_in_closed_form():
    head = build()
    rois = [[0, 0, 10, 10], [0, 0, 20, 20], [5, 5, 9, 9], [1, 1, 2, 2]]
    gt = [[0, 0, 10, 10], [10, 0, 30, 20], [0, 0, 1, 1], [0, 0, 1, 1]]
    given = regions([1, 2, K, -1], rois, gt)
    output = BoxOutput(torch.zeros(4, K + 1), torch.zeros(4, 4 * K))
    losses = head.loss(output, given)
    # Three regions count. The second object's centre lies half a width to the right: 0.5 * 10.
    assert losses["class"] == pytest.approx(math.log(4))
    assert losses["box"] == pytest.approx(5.0 / 3)
    output.deltas[1, 4 * 2] = 5.0  # class 2, dx
    output.deltas[1, 4 * 1] = 99.0  # another class's box is free
    output.deltas[2] = 99.0  # so is every box of the background
    assert head.loss(output, given)["box"] == 0


def test_the_box_error_of_each_origin():
    given = regions([0], [[0, 0, 10, 10]], [[0.1, 0, 10.1, 10]])  # dx = 0.01 * 10 = 0.1
    output = BoxOutput(torch.zeros(1, K + 1), torch.zeros(1, 4 * K))
    assert build(CONVENTIONS["mmdet"]).loss(output, given)["box"] == pytest.approx(0.1, rel=1e-4)
    quadratic = 0.5 * 0.1**2 * 9
    assert build(CONVENTIONS["torchvision"]).loss(output, given)["box"] == pytest.approx(
        quadratic, rel=1e-4
    )


def test_nothing_that_counts_is_zero_with_a_gradient():
    head = build()
    output = head.predict(torch.randn(1, 8, 7, 7))
    losses = head.loss(output, regions([-1], [[0, 0, 4, 4]], [[0, 0, 4, 4]]))
    assert losses["class"] == losses["box"] == 0
    (losses["class"] + losses["box"]).backward()
    assert all(p.grad is not None for p in head.parameters())


DECODE_CASES = [
    # boxes, probabilities, settings, expected (label, score, x1), why
    (
        [[0, 0, 10, 10], [1, 0, 11, 10]],
        [[0.9, 0.0, 0.0], [0.8, 0.0, 0.0]],
        {},
        [(0, 0.9, 0)],
        "a worse box of the same class is suppressed",
    ),
    (
        [[0, 0, 10, 10], [1, 0, 11, 10]],
        [[0.9, 0.0, 0.0], [0.0, 0.8, 0.0]],
        {},
        [(0, 0.9, 0), (1, 0.8, 1)],
        "another class does not suppress",
    ),
    (
        [[0, 0, 10, 10]],
        [[0.5, 0.3, 0.05]],
        {},
        [(0, 0.5, 0), (1, 0.3, 0)],
        "one region may give several classes; 0.05 is not more than the threshold",
    ),
    (
        [[0, 0, 10, 10], [20, 20, 30, 30], [40, 40, 50, 50]],
        [[0.6, 0.0, 0.0], [0.9, 0.0, 0.0], [0.7, 0.0, 0.0]],
        {"detections": 2},
        [(0, 0.9, 20), (0, 0.7, 40)],
        "the best remain, in order",
    ),
    (
        [[0, 0, 10, 10], [0, 0, 10, 5]],
        [[0.9, 0.0, 0.0], [0.8, 0.0, 0.0]],
        {},
        [(0, 0.9, 0), (0, 0.8, 0)],
        "an IoU of exactly the threshold is kept",
    ),
]


@pytest.mark.parametrize(("boxes", "probs", "options", "expected", "why"), DECODE_CASES)
def test_decode(boxes, probs, options, expected, why):
    head = build(**{"detections": 4, **options})
    found = head.decode(says(probs), proposals(boxes), (64, 64))
    count = int(found.valid.sum())
    rows = zip(
        found.labels[0, :count].tolist(),
        found.scores[0, :count].tolist(),
        found.boxes[0, :count, 0].tolist(),
        strict=True,
    )
    got = [(label, round(score, 5), x) for label, score, x in rows]
    assert got == expected, why
    assert found.boxes.shape == (1, head.detections, 4)
    assert not found.scores[0, count:].any()


def test_decode_regresses_with_the_deltas_of_the_class():
    deltas = torch.zeros(1, 4 * K)
    wanted = torch.tensor([[4.0, 6.0, 30.0, 40.0]])
    reference = torch.tensor([[0.0, 0.0, 20.0, 20.0]])
    deltas[:, 8:] = encode_boxes(reference, wanted, (10, 10, 5, 5))
    found = build().decode(says([[0.0, 0.0, 0.8]], deltas), proposals(reference.tolist()), (38, 64))
    torch.testing.assert_close(found.boxes[0, 0], torch.tensor([4.0, 6.0, 30.0, 38.0]))


def test_padding_proposals_are_never_detections():
    found = build().decode(
        says([[0.9, 0.0, 0.0], [0.9, 0.0, 0.0]]),
        proposals([[0, 0, 9, 9], [20, 20, 30, 30]], [True, False]),
        (64, 64),
    )
    assert found.valid.sum() == 1


def test_torchvision_drops_slivers():
    boxes = proposals([[0, 0, 10, 10], [20, 20, 20.005, 30]])
    output = says([[0.9, 0.0, 0.0], [0.9, 0.0, 0.0]])
    for origin, rules in CONVENTIONS.items():
        kept = int(build(rules).decode(output, boxes, (64, 64)).valid.sum())
        assert kept == (1 if origin.startswith("torchvision") else 2)


def test_sampling_a_drawn_case():
    objects = make_target([[0, 0, 10, 10], [30, 30, 60, 60], [40, 0, 60, 20]], [2, 0, 1], [0, 0, 1])
    given = proposals(
        [[0, 0, 10, 11], [30, 30, 60, 50], [5, 40, 9, 44], [41, 1, 59, 19], [9, 9, 9, 9]],
        [True, True, True, True, False],
    )
    drawn = sample_regions(given, [objects], count=16, positive_frac=0.5, num_classes=K)
    by_box = {tuple(r[1:].tolist()): int(x) for r, x in zip(drawn.rois, drawn.labels, strict=True)}
    assert by_box == {
        (0, 0, 10, 11): 2,
        (30, 30, 60, 50): 0,
        (5, 40, 9, 44): K,
        (0, 0, 10, 10): 2,  # the objects' own boxes join
        (30, 30, 60, 60): 0,
    }  # the box in the crowd and the padding are in neither
    inside = drawn.foreground()
    assert len(inside.labels) == 4
    assert (objects.labels[inside.gt_index] == inside.labels).all()
    assert torch.equal(objects.boxes[inside.gt_index], inside.gt_boxes)


@pytest.mark.parametrize("low_quality", [None, 0.0])
def test_what_is_not_learnt_from_keeps_its_place_and_matches_nothing(low_quality):
    boxes = torch.tensor([[0.0, 0, 10, 10], [30, 30, 60, 60], [30, 30, 60, 58], [5, 5, 9, 9]])
    objects = make_target([[0, 0, 0, 10], [30, 30, 60, 60], [30, 30, 60, 58]], [0, 1, 2], [0, 1, 0])
    rules = {"high": 0.99, "low": 0.3, "min_low_quality": low_quality}
    crowded, ours, none = IGNORED, 2, BACKGROUND
    found = match_objects(boxes, objects, **rules)
    assert found.tolist() == [none, crowded, ours, none]
    nothing = make_target([[0, 0, 0, 10]], [0])
    assert match_objects(boxes, nothing, **rules).tolist() == [none] * 4


def test_pictures_without_objects_give_background_alone():
    empty, one = make_target([], []), make_target([[0, 0, 10, 10]], [1])
    boxes = torch.tensor([[0.0, 0, 10, 11], [40, 40, 60, 60]]).expand(2, 2, 4)
    given = Proposals(boxes, torch.zeros(2, 2), torch.ones(2, 2).bool())
    drawn = build().sample(given, [empty, one])
    assert drawn.labels.tolist() == [K, K, 1, 1, K]
    assert drawn.objects.tolist() == [2, 3]
    assert drawn.gt_index[drawn.objects].tolist() == [0, 0]
    drawn = build().sample(given, [empty, empty])
    assert drawn.labels.tolist() == [K] * 4
    assert not drawn.foreground().is_object.any()


def test_sampling_keeps_the_share_and_indexes_the_joined_masks():
    first = make_target([[0, 0, 10, 10]], [1])
    second = make_target([[20, 20, 40, 40], [0, 0, 8, 8]], [0, 2])
    boxes = torch.tensor([[20.0, 20, 40, 40]] * 20 + [[50, 50, 60, 60.0]] * 20)
    given = Proposals(boxes.expand(2, 40, 4), torch.zeros(2, 40), torch.ones(2, 40).bool())
    drawn = build(regions_per_image=16).sample(given, [first, second])
    of_second = drawn.select(drawn.rois[:, 0] == 1)
    assert len(of_second.labels) == 16
    assert int(of_second.is_object.sum()) == 4
    assert set(of_second.foreground().gt_index.tolist()) <= {1, 2}
    assert len(drawn.masks) == 3


@pytest.mark.parametrize("path", fixture_params("instance", "ops_matching_losses*"))
@pytest.mark.parametrize(
    ("origin", "value"),
    [
        ("torchvision", "box_smooth_l1_beta_1_9"),
        ("detectron2", "box_l1"),
        ("mmdet", "box_l1_mmdet"),
    ],
)
def test_losses_of_the_originals(path, origin, value):
    fixture = load_fixture(path)
    classes = fixture.meta["configuration"]["classes"]
    head = BoxHead(MeanTrunk(8), classes, CONVENTIONS[origin])
    boxes, matches = fixture.tensor("proposals"), fixture.tensor("roi_match_torchvision")
    labels = fixture.tensor("roi_labels")  # 0 is the background
    given = Regions(
        torch.cat([torch.zeros(len(boxes), 1), boxes], dim=1),
        torch.where(labels == 0, classes, labels - 1),
        fixture.tensor("gt_boxes")[matches.clamp(min=0)],
        matches.clamp(min=0),
        MaskCrops.empty((200, 260)),
        classes,
    )
    output = BoxOutput(
        fixture.tensor("class_logits").roll(-1, 1), fixture.tensor("box_deltas")[:, 4:]
    )
    inside = labels > 0
    torch.testing.assert_close(
        head.targets(given)[1], fixture.tensor("roi_targets")[inside], rtol=1e-4, atol=1e-4
    )
    losses, wanted = head.loss(output, given), fixture.meta["losses"]
    assert losses["class"] == pytest.approx(wanted["class_loss"], rel=1e-5)
    assert losses["box"] == pytest.approx(wanted[value], rel=1e-5)
