"""`Segmenter.fuse` and thresholds: faster, with the same predictions."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from pixelwise.ops import rle
from pixelwise.predict import Segmenter
from pixelwise.result import Result
from pixelwise.spec import ResizeRule
from pixelwise.systems import create, find

SMALL = {
    "yolact_rt": {"channels": 16, "score_thresh": 0.0},
    "decoupled_solo_rt": {"channels": 16, "head_width": 16, "score_thresh": 0.0, "final_thresh": 0},
    "mask_rcnn_lite0_fpn": {"proposals": (20, 20), "score_thresh": 0.0},
    "deeplabv3plus_efficientnet_lite0": {},
}


def segmenter(name: str) -> Segmenter:
    torch.manual_seed(0)
    entry = find(name)
    system = create(name, num_classes=2, **SMALL[name])
    if hasattr(system, "masks"):  # SOLO's start below every threshold
        for conv in (*system.masks.columns, *system.masks.rows, system.categories.classify):
            torch.nn.init.normal_(conv.weight, std=1.0)
            torch.nn.init.zeros_(conv.bias)
    return Segmenter(
        system,
        name=name,
        classes=["a", "b"],
        input=replace(entry.input, resize=ResizeRule(pad_divisor=32)),
        task=entry.task,
        device="cpu",
    )


def picture() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (70, 90, 3), np.uint8)


@pytest.mark.parametrize("name", SMALL)
def test_fused_networks_predict_the_same(name: str) -> None:
    seg = segmenter(name)
    keys = set(seg.system.state_dict())
    before: Result = seg.predict(picture(), score_thresh=0.0)
    assert seg.fuse() is seg
    after: Result = seg.predict(picture(), score_thresh=0.0)
    assert set(seg.system.state_dict()) == keys
    if before.semantic is not None:
        assert (before.semantic.labels == after.semantic.labels).float().mean() > 0.999
        return
    assert len(before.instances) > 5
    np.testing.assert_allclose(after.instances.scores, before.instances.scores, atol=1e-5)


@pytest.mark.parametrize("name", [n for n in SMALL if find(n).task == "instance"])
def test_a_threshold_only_leaves_out_the_detections_below_it(name: str) -> None:
    """Though the masks of those below are not even drawn."""
    seg = segmenter(name)
    every = seg.predict(picture(), score_thresh=0.0).instances
    middle = float(np.sort(np.asarray(every.scores))[len(every) // 2])
    some = seg.predict(picture(), score_thresh=middle).instances
    kept = np.flatnonzero(np.asarray(every.scores) >= middle)
    assert 0 < len(some) == len(kept) < len(every)
    assert np.array_equal(some.scores, np.asarray(every.scores)[kept])
    assert np.array_equal(some.labels, np.asarray(every.labels)[kept])
    wanted = rle.to_coco(every.masks.select(kept))
    assert rle.to_coco(some.masks) == wanted
