import dataclasses

import pytest
import torch

from pixelwise.nn.conventions import CONVENTIONS
from pixelwise.nn.rpn import RPN, AnchorGrid, RPNMaps
from pixelwise.ops.boxes import encode_boxes, pairwise_iou
from pixelwise.types import InstanceTarget, MaskCrops

RULES = CONVENTIONS["detectron2"]


def grid(conventions=RULES, sizes=((8,), (16,)), strides=(4, 8)):
    return AnchorGrid(sizes=sizes, ratios=(0.5, 1.0, 2.0), strides=strides, conventions=conventions)


def build(conventions=RULES, **options):
    torch.manual_seed(0)
    return RPN(8, grid(conventions), conventions, **options)


def maps_for(size=(32, 48), batch=1, channels=8):
    torch.manual_seed(1)
    return [torch.randn(batch, channels, size[0] // s, size[1] // s) for s in (4, 8)]


def target(boxes, crowd=None, size=(32, 48)):
    boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    return InstanceTarget(
        boxes=boxes,
        labels=torch.zeros(len(boxes), dtype=torch.int64),
        masks=MaskCrops.empty(size),
        crowd=torch.tensor(crowd or [False] * len(boxes)),
    )


def silent(maps, fill=-9.0):
    """Maps that call every anchor background and move none."""
    net = build()
    predicted = net.predict(maps)
    return RPNMaps(
        [torch.full_like(x, fill) for x in predicted.logits],
        [torch.zeros_like(x) for x in predicted.deltas],
    )


def test_channels_of_both_maps():
    predicted = build(convs=2).predict([*maps_for(), torch.randn(1, 8, 1, 1)])
    assert [tuple(x.shape) for x in predicted.logits] == [(1, 3, 8, 12), (1, 3, 4, 6)]
    assert [tuple(x.shape) for x in predicted.deltas] == [(1, 12, 8, 12), (1, 12, 4, 6)]


def test_anchors_start_at_the_origin_and_keep_their_area():
    anchors = grid().place(maps_for(), (32, 48))
    first = anchors[0][:3]
    torch.testing.assert_close((first[:, :2] + first[:, 2:]) / 2, torch.zeros(3, 2))
    sides = first[:, 2:] - first[:, :2]
    torch.testing.assert_close(sides.prod(1), torch.full((3,), 64.0))
    torch.testing.assert_close(sides[:, 1] / sides[:, 0], torch.tensor([0.5, 1.0, 2.0]))
    # Rows first, then columns, then the anchors of a cell.
    torch.testing.assert_close(anchors[0][3] - first[0], torch.tensor([4.0, 0, 4, 0]))
    torch.testing.assert_close(anchors[0][36] - first[0], torch.tensor([0.0, 4, 0, 4]))


@pytest.mark.parametrize(
    ("origin", "stride"), [("detectron2", (8, 8)), ("mmdet", (8, 8)), ("torchvision", (7, 7))]
)
def test_spacing_at_an_odd_size(origin, stride):
    anchors = grid(CONVENTIONS[origin]).place(
        [torch.zeros(1, 1, 8, 8), torch.zeros(1, 1, 4, 4)], (30, 31)
    )
    step_x = anchors[1][3] - anchors[1][0]
    step_y = anchors[1][12] - anchors[1][0]
    assert (float(step_y[1]), float(step_x[0])) == stride


def test_the_map_cell_of_an_anchor_moves_that_anchor():
    maps = silent(maps_for())
    maps.logits[1][0, 2, 3, 4] = 5.0  # level 1, anchor 2, row 3, column 4
    maps.deltas[1][0, 4 * 2 : 4 * 2 + 4, 3, 4] = torch.tensor([0.5, -0.25, 0.0, 0.0])
    found = build().decode(maps, (64, 64))
    width, height = 16 / 2**0.5, 16 * 2**0.5
    x, y = 32 + width / 2, 24 - height / 4
    wanted = torch.tensor([x - width / 2, y - height / 2, x + width / 2, y + height / 2])
    torch.testing.assert_close(found.boxes[0, 0], wanted)
    assert found.logits[0, 0] == 5.0


def test_proposals_are_clipped_suppressed_and_padded():
    # Neighbours of 32 px at 4 px overlap by 0.78.
    anchors = grid(sizes=((32,), (32,)))
    net = RPN(8, anchors, RULES, pre_nms=(50, 50), post_nms=(300, 300))
    maps = net.predict(maps_for(batch=2))
    found = net.decode(maps, (32, 48))
    assert found.boxes.shape == (2, 50 + 50, 4)  # all candidates: fewer than asked for
    for boxes, logits, valid in zip(*found, strict=True):
        assert valid.any()
        assert not valid.all()
        assert (boxes[valid][:, 0::2] <= 48).all()
        assert (boxes[valid][:, 1::2] <= 32).all()
        assert (boxes >= 0).all()
        assert not boxes[~valid].any()
        assert (logits[valid].diff() <= 0).all()
        assert valid[: int(valid.sum())].all()


def test_training_clips_to_the_content():
    net = build()
    found = net.decode(net.predict(maps_for()), (32, 48), contents=[(20, 30)])
    assert found.boxes[..., 2].max() <= 30
    assert found.boxes[..., 3].max() <= 20
    sides = (found.boxes[..., 2:] - found.boxes[..., :2])[found.valid]
    assert (sides > 0).all()


def test_the_images_of_a_batch_do_not_meet():
    net = RPN(8, grid(sizes=((32,), (32,))), RULES, pre_nms=(50, 50), post_nms=(300, 300))
    features = maps_for(batch=3)
    contents = [(32, 48), (20, 30), (31, 7)]
    together = net.decode(net.predict(features), (32, 48), contents=contents)
    for image, content in enumerate(contents):
        maps = net.predict([x[image : image + 1] for x in features])
        alone = net.decode(maps, (32, 48), contents=[content])
        for one, all_of_them in zip(alone, together, strict=True):
            torch.testing.assert_close(one[0], all_of_them[image])


def test_anchors_are_those_of_each_size():
    net = grid(CONVENTIONS["torchvision"])
    for size in ((32, 48), (64, 48), (30, 31), (32, 48)):
        maps = maps_for(size)
        rows, columns = maps[1].shape[-2:]
        last = net.place(maps, size)[1][-3:]  # of the last cell: its centre is its corner
        centre = torch.tensor([size[1] // columns * (columns - 1), size[0] // rows * (rows - 1)])
        torch.testing.assert_close((last[:, :2] + last[:, 2:]) / 2, centre.float().expand(3, 2))


def test_anchors_placed_by_a_prediction_may_take_part_in_a_loss():
    with torch.inference_mode():
        placed = grid().place(maps_for(size=(36, 52)), (36, 52))
    assert not any(level.is_inference() for level in placed)


def test_training_and_inference_have_their_own_counts():
    net = RPN(8, grid(), RULES, pre_nms=(6, 2), post_nms=(9, 3))
    maps = net.predict(maps_for())
    training, inference = (
        net.decode(maps, (32, 48), contents=[(32, 48)]),
        net.decode(maps, (32, 48)),
    )
    assert training.boxes.shape == (1, 9, 4)  # of 2 levels with 6 candidates each
    assert inference.boxes.shape == (1, 3, 4)  # of 2 levels with 2 each
    few = RPN(8, grid(), RULES, pre_nms=(6, 2), post_nms=(99, 99))
    assert few.decode(maps, (32, 48), contents=[(32, 48)]).boxes.shape == (1, 12, 4)
    assert few.decode(maps, (32, 48)).boxes.shape == (1, 4, 4)


def test_targets_of_a_drawn_case():
    net = build()
    anchors = torch.cat(net.anchors.place(maps_for(), (32, 48)))
    objects = target([[10, 10, 18, 18], [20, 4, 40, 30]])
    torch.manual_seed(0)
    drawn = net.targets(anchors, [objects, objects])
    per_image = len(drawn.chosen) // 2
    assert per_image <= 256
    count = int(drawn.is_object.sum())
    assert drawn.is_object[:count].all()
    assert len(drawn.deltas) == count
    iou = pairwise_iou(objects.boxes, anchors)
    positive = drawn.chosen[: count // 2]
    best = iou.amax(dim=1)
    assert ((iou[:, positive] >= 0.7).any(0) | (iou[:, positive] == best[:, None]).any(0)).all()
    matched = objects.boxes[iou[:, positive].argmax(0)]
    expected = encode_boxes(anchors[positive], matched, (1, 1, 1, 1))
    torch.testing.assert_close(drawn.deltas[: count // 2], expected)
    negatives = drawn.chosen[count:] % len(anchors)
    assert (iou[:, negatives].amax(dim=0) < 0.3).all()


@pytest.mark.parametrize("origin", CONVENTIONS)
def test_a_perfect_prediction_loses_nothing(origin):
    net = build(CONVENTIONS[origin])
    objects = target([[10, 10, 18, 18]])
    features = maps_for()
    anchors = torch.cat(net.anchors.place(features, (32, 48)))
    iou = pairwise_iou(objects.boxes, anchors)[0]
    maps = silent(features, fill=-40.0)
    right = encode_boxes(anchors, objects.boxes.expand_as(anchors), (1, 1, 1, 1))
    start = 0
    for logits, deltas in zip(maps.logits, maps.deltas, strict=True):
        h, w = logits.shape[-2:]
        cells = slice(start, start + h * w * 3)
        start = cells.stop
        deltas.copy_(right[cells].reshape(h, w, 12).permute(2, 0, 1)[None])
        near = ((iou[cells] >= 0.3) * 80.0 - 40.0).reshape(h, w, 3)
        logits.copy_(near.permute(2, 0, 1)[None])
    losses = net.loss(maps, (32, 48), [objects])
    assert losses["rpn_objectness"] < 1e-6
    assert losses["rpn_box"] < 1e-6


def test_the_normaliser_of_each_origin():
    objects = target([[10, 10, 18, 18]])
    values = {}
    for by_count in (True, False):
        net = build(dataclasses.replace(RULES, sampled_normaliser=by_count))
        maps = silent(maps_for(size=(16, 16)), fill=0.0)  # log 2 for every drawn anchor
        values[by_count] = float(net.loss(maps, (16, 16), [objects])["rpn_objectness"])
    drawn = values[False] * 256 / 0.6931472
    assert values[True] == pytest.approx(0.6931472, rel=1e-5)
    assert drawn == pytest.approx(round(drawn), abs=1e-3)
    assert drawn < 61  # a 4x4 and a 2x2 grid of 3 anchors


def test_anchors_in_a_crowd_are_ignored():
    net = build()
    anchors = torch.cat(net.anchors.place(maps_for(), (32, 48)))
    drawn = net.targets(anchors, [target([[-90, -90, 140, 140]], [True])])
    assert len(drawn.chosen) == 0
    assert (
        net.loss(net.predict(maps_for()), (32, 48), [target([[-90, -90, 140, 140]], [True])])[
            "rpn_objectness"
        ]
        == 0
    )


def test_detectrons_anchors_are_the_cell_stretched_in_whole_pixels():
    """Centred on the cell, where all others are centred on its corner."""
    anchors = grid(CONVENTIONS["detectron"], ((32,), (64,))).place(maps_for(), (32, 48))
    wanted = [[-22, -10, 26, 14], [-14, -14, 18, 18], [-10, -22, 14, 26]]
    assert anchors[0][:3].tolist() == wanted
    assert anchors[1][1].tolist() == [-28, -28, 36, 36]


def test_openmmlab_gives_an_anchor_to_the_last_object_it_is_best_for():
    # Both objects are best met by the first anchor, which overlaps the first one more.
    anchors = torch.tensor([[0.0, 0, 8, 8], [16.0, 16, 24, 24]])
    objects = target([[0, 0, 8, 11], [0, 0, 8, 16]])
    for origin, encoded in (("detectron2", 11), ("mmdet", 16)):
        rules = CONVENTIONS[origin]
        deltas = build(rules).targets(anchors, [objects]).deltas
        height = torch.tensor([[0.0, 0, 8, encoded]])
        torch.testing.assert_close(deltas, encode_boxes(anchors[:1], height, (1, 1, 1, 1)))
