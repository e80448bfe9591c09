"""Assignment by overlap: hand-drawn cases and what upstream matchers compute."""

import pytest
import torch

from pixelwise.ops.boxes import pairwise_iou
from pixelwise.ops.matching import BACKGROUND, match_boxes, match_one_each
from tests.fixtures import fixture_params, load_fixture

RPN = {"high": 0.7, "low": 0.3, "allow_low_quality": True}
MMDET = RPN | {"min_low_quality": 0.3, "low_quality_to": "last"}
ROI = {"high": 0.5, "low": 0.5}


@pytest.mark.parametrize(
    ("iou", "settings", "expected", "why"),
    [
        (
            [[0.8, 0.5, 0.1]],
            {"high": 0.7, "low": 0.3},
            [0, -2, -1],
            "one of each kind",
        ),
        ([[0.7, 0.3]], {"high": 0.7, "low": 0.3}, [0, -2], "both bounds belong to the upper side"),
        ([[0.4, 0.4, 0.2]], RPN, [0, 0, -1], "ties for the best are all taken"),
        ([[0.2, 0.1]], RPN, [0, -1], "a poor best is still a best"),
        ([[0.2, 0.1]], RPN | {"min_low_quality": 0.3}, [-1, -1], "unless a minimum is asked for"),
        ([[0.0, 0.0], [0.9, 0.0]], RPN, [1, -1], "no overlap at all takes nothing"),
        ([[0.4, 0.0], [0.6, 0.65]], RPN, [1, 1], "the anchor goes to whom it overlaps most"),
        ([[0.6, 0.0], [0.4, 0.0], [0.5, 0.0]], RPN, [0, -1], "best of all, so of the first"),
        ([[0.6, 0.0], [0.4, 0.0], [0.2, 0.0]], MMDET, [1, -1], "best of all above 0.3: the last"),
        ([[0.5, 0.49], [0.5, 0.2]], ROI, [0, -1], "first ground truth of equals"),
    ],
)
def test_table(iou: list, settings: dict, expected: list, why: str) -> None:
    assert match_boxes(torch.tensor(iou), **settings).tolist() == expected, why


def test_no_ground_truth_and_no_anchors() -> None:
    assert match_boxes(torch.zeros(0, 3), **RPN).tolist() == [-1, -1, -1]
    assert match_boxes(torch.zeros(2, 0), **RPN).shape == (0,)


@pytest.mark.parametrize("path", fixture_params("instance", "ops_matching_losses*"))
def test_parity(path: object) -> None:
    fixture = load_fixture(path)
    gt = fixture.tensor("gt_boxes")
    iou = pairwise_iou(gt, fixture.tensor("anchors"))
    assert torch.equal(match_boxes(iou, **RPN), fixture.tensor("rpn_match_torchvision"))
    mm = fixture.tensor("rpn_match_mmdet")
    theirs = torch.where(mm > 0, mm - 1, torch.where(mm == 0, -1, -2))
    assert torch.equal(match_boxes(iou, **MMDET), theirs)
    roi = match_boxes(pairwise_iou(gt, fixture.tensor("proposals")), **ROI)
    assert torch.equal(roi, fixture.tensor("roi_match_torchvision"))


def test_every_object_gets_an_anchor_of_its_own() -> None:
    """Object 1 has anchor 0, so anchor 3 goes to object 0, though 1 overlaps it more."""
    iou = torch.tensor([[0.3, 0.2, 0.0, 0.45], [0.9, 0.1, 0.0, 0.6]])
    assert match_one_each(iou, high=0.5, low=0.4).tolist() == [1, BACKGROUND, BACKGROUND, 0]


def test_objects_without_overlap_still_get_one() -> None:
    matches = match_one_each(torch.zeros(2, 4), high=0.5, low=0.4)
    assert sorted(matches[matches >= 0].tolist()) == [0, 1]
    assert match_one_each(torch.zeros(3, 2), high=0.5, low=0.4).tolist() == [0, 1]
    assert match_one_each(torch.zeros(0, 2), high=0.5, low=0.4).tolist() == [-1, -1]
