"""Weights for other classes: rows matched by class name."""

from typing import ClassVar

import pytest
import torch
from torch import nn

from pixelwise import checkpoint, class_rows
from pixelwise.class_rows import load_by_class
from pixelwise.errors import ModelError
from pixelwise.spec import IMAGENET_RGB
from pixelwise.systems import create

SMALL = {"backbone": "resnet18", "aspp_width": 8, "decoder_width": 8, "low_level_width": 4}


def small(num_classes=3):
    torch.manual_seed(0)
    return create("deeplabv3plus", num_classes=num_classes, **SMALL)


@pytest.fixture
def saved(tmp_path):
    net, path = small(), tmp_path / "w.safetensors"
    checkpoint.save(
        path, net, name="deeplabv3plus", classes=["sky", "road", "car"], input=IMAGENET_RGB
    )
    return net, path


def test_fine_tuning_reuses_rows_by_name(saved):
    net, path = saved
    fresh = small(num_classes=4)
    before = fresh.classify.weight.detach().clone()
    line = load_by_class(fresh, path, classes=["car", "bus", "sky", "tree"])
    assert line == "reused 2 of 4 classes by name: car, sky; initialised: bus, tree"
    assert torch.equal(fresh.classify.weight[0], net.classify.weight[2])
    assert torch.equal(fresh.classify.weight[2], net.classify.weight[0])
    assert torch.equal(fresh.classify.weight[1], before[1])
    assert torch.equal(fresh.classify.bias[2], net.classify.bias[0])
    shared = [n for n in net.state_dict() if not n.startswith("classify")]
    assert all(torch.equal(fresh.state_dict()[n], net.state_dict()[n]) for n in shared)


def test_same_classes_in_another_order_are_moved(saved):
    net, path = saved
    fresh = small()
    line = load_by_class(fresh, path, classes=["car", "road", "sky"])
    assert line == "reused 3 of 3 classes by name: car, road, sky"
    assert torch.equal(fresh.classify.weight, net.classify.weight[[2, 1, 0]])


def test_another_architecture_is_refused(saved):
    _, path = saved
    wider = create("deeplabv3plus", num_classes=3, **{**SMALL, "aspp_width": 16})
    with pytest.raises(ModelError, match=r"another architecture.*differing weights"):
        load_by_class(wider, path, classes=["sky", "road", "car"])


class Rows(nn.Module):
    """Four rows per class in one layer, background last in the other, one shared by all classes."""

    CLASS_ROWS: ClassVar[dict[str, int]] = {"boxes": 4, "scores": 1, "agnostic": 1}

    def __init__(self, classes):
        super().__init__()
        self.boxes = nn.Linear(2, 4 * classes)
        self.scores = nn.Linear(2, classes + 1)
        self.agnostic = nn.Linear(2, 1)


def test_rows_of_boxes_background_and_agnostic_layers():
    old, new = Rows(2), Rows(3)
    names_old, names_new = ["a", "b"], ["b", "c", "a"]
    for key, per_class in (("boxes", 4), ("scores", 1), ("agnostic", 1)):
        stored, fresh = old.state_dict()[f"{key}.weight"], new.state_dict()[f"{key}.weight"]
        mixed = class_rows._match_rows(fresh, stored, names_old, names_new, per_class)
        if key == "agnostic":
            assert torch.equal(mixed, stored)
            continue
        assert torch.equal(mixed[:per_class], stored[per_class : 2 * per_class])  # b
        assert torch.equal(mixed[per_class : 2 * per_class], fresh[per_class : 2 * per_class])  # c
        assert torch.equal(mixed[2 * per_class : 3 * per_class], stored[:per_class])  # a
    assert torch.equal(
        class_rows._match_rows(new.scores.weight, old.scores.weight, names_old, names_new, 1)[-1],
        old.scores.weight[-1],
    ), "background stays last"
