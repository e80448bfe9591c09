"""Faint detections are left out before their masks are made, and no others."""

from typing import NamedTuple

import torch
from torch import Tensor

from pixelwise.nn.detections import Detections, drop_faint


class Cells(NamedTuple):
    scores: Tensor
    masks: Tensor


class Regions(NamedTuple):
    scores: Tensor
    valid: Tensor


def test_detections_below_the_score_are_no_longer_valid() -> None:
    scores = torch.tensor([[0.9, 0.5, 0.49, 0.8]])
    valid = torch.tensor([[True, True, True, False]])
    raw = Detections(torch.rand(1, 4, 4), scores, torch.zeros(1, 4).long(), valid)
    kept = drop_faint(raw, 0.5)
    assert kept.valid.tolist() == [[True, True, False, False]]
    assert kept.scores is raw.scores
    assert drop_faint(raw, 0.0).valid.tolist() == valid.tolist()


def test_scores_of_cells_become_zero() -> None:
    raw = Cells(torch.tensor([[[0.2, 0.7], [0.5, 0.1]]]), torch.rand(1, 2, 3, 3))
    kept = drop_faint(raw, 0.5)
    assert torch.equal(kept.scores, torch.tensor([[[0, 0.7], [0.5, 0]]]))
    assert kept.masks is raw.masks


def test_what_has_no_single_score_stays() -> None:
    regions = Regions(torch.rand(1, 2, 3), torch.ones(1, 2, dtype=torch.bool))
    assert drop_faint(regions, 0.5) is regions
    plain = (torch.rand(2),)
    assert drop_faint(plain, 0.5) is plain
