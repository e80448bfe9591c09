"""Runner of the fixtures of RetinaNet, for `test_parity_instance`.

RetinaNet is the base that YOLACT is measured against, not a system of the table: a detector of
boxes, here put together from the shared parts.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pixelwise.convert.detection import count, mmdet_convs, renamed_shapes
from pixelwise.convert.resnet import infer_resnet, torchvision_rules
from pixelwise.convert.rules import Rename, Rows, Rule, invert, prefixed, translate
from pixelwise.convert.yolact import anchors_last
from pixelwise.nn.backbones import build_backbone
from pixelwise.nn.dense_head import flatten_levels
from pixelwise.nn.fpn import OneStageFPN
from pixelwise.nn.tower_head import TowerHead
from pixelwise.ops.anchors import base_anchors, grid_anchors
from pixelwise.ops.boxes import clip_boxes, decode_boxes
from tests.convert.parity_fcos import check_all
from tests.fixtures import Fixture, fill_state

MERGED = 3  # levels that the backbone gives


class RetinaNet(nn.Module):
    """Two towers for all levels, `scales` times `ratios` anchors per cell."""

    def __init__(self, state: dict[str, Tensor], *, per_cell: int, style: str, fpn: str) -> None:
        super().__init__()
        source, between = read_pyramid(fpn)
        shapes = renamed_shapes(rules(), state)
        channels = shapes["neck.lateral.0.conv.weight"][0]
        classes = state["bbox_head.retina_cls.weight"].shape[0] // per_cell
        self.levels = MERGED + count(shapes, r"neck\.extra\.(\d)\.")
        self.backbone: Any = build_backbone(
            infer_resnet(state, "backbone."),
            in_channels=shapes["backbone.stem.0.conv.weight"][1],
            levels=(3, 4, 5),
            norm="batch",
            style=style,
        )
        self.neck = OneStageFPN(
            self.backbone.channels,
            channels,
            extra=self.levels - MERGED,
            extra_from=source,
            relu_between=between,
        )
        self.head = TowerHead(
            channels,
            shapes["head.towers.category.tower.0.conv.weight"][0],
            {"category": {"classify": per_cell * classes}, "box": {"regress": per_cell * 4}},
            levels=self.levels,
            convs=count(shapes, r"head\.towers\.category\.tower\.(\d)\."),
            norm=None,
        )


def read_pyramid(words: str) -> tuple[Literal["input", "output"], bool]:
    """Where P6 comes from, and whether a ReLU stands before P7, such as "P6 from C5, no ReLU"."""
    found = re.search(r"P6 from ([CP])5", words)
    assert found, words
    return "input" if found[1] == "C" else "output", bool(re.search(r"(?<!no )ReLU", words))


def rules(per_cell: int = 1) -> list[Rule]:
    """OpenMMLab's names; its channels go anchor by anchor, ours number by number."""
    order = anchors_last(per_cell)
    return [
        *prefixed(torchvision_rules(), "backbone.", "backbone."),
        Rename(r"neck\.lateral_convs\.(\d)\.conv\.", r"neck.lateral.\1.conv."),
        Rename(r"neck\.fpn_convs\.([0-2])\.conv\.", r"neck.output.\1.conv."),
        *(
            Rename(rf"neck\.fpn_convs\.{i + MERGED}\.conv\.", f"neck.extra.{i}.conv.")
            for i in range(3)
        ),
        *(
            rule
            for theirs, ours in (("cls", "category"), ("reg", "box"))
            for rule in mmdet_convs(
                rf"bbox_head\.{theirs}_convs", f"head.towers.{ours}.tower", norm=None
            )
        ),
        Rows(r"bbox_head\.retina_cls\.", "head.towers.category.outputs.classify.", order=order),
        Rows(r"bbox_head\.retina_reg\.", "head.towers.box.outputs.regress.", order=order),
    ]


def anchors_of(words: str) -> tuple[Tensor, list[int]]:
    """The anchors of each level's cell, [L, A, 4], and the levels' strides, from the json."""
    found = re.match(
        r"octave base scale (\d+), (\d) scales? per octave, "
        r"ratios ([\d. ]+) \(h/w\), strides (\d+)\.\.(\d+)",
        words,
    )
    assert found, words
    base, octave = int(found[1]), int(found[2])
    ratios = [float(ratio) for ratio in found[3].split()]
    strides = [int(found[4])]
    while strides[-1] < int(found[5]):
        strides.append(2 * strides[-1])
    sizes = [base * 2 ** (i / octave) for i in range(octave)]
    cells = [base_anchors([stride * size for size in sizes], ratios) for stride in strides]
    return torch.stack(cells), strides


@torch.no_grad()
def run_retinanet(fixture: Fixture) -> None:
    about, state = fixture.meta["configuration"], fill_state(fixture.meta)
    base, strides = anchors_of(about["anchors"])
    per_cell = base.shape[1]
    style = "caffe" if "caffe" in fixture.name + json.dumps(about) else "pytorch"
    net = RetinaNet(state, per_cell=per_cell, style=style, fpn=about["fpn"]).eval()
    assert net.levels == len(strides)
    translation = translate(rules(per_cell), state, net.state_dict())
    net.load_state_dict(translation.state)
    back = invert(rules(per_cell), net.state_dict())
    assert set(back) == set(state) - set(translation.dropped)
    assert all(torch.equal(value, state[key]) for key, value in back.items())
    assert sum(p.numel() for p in net.parameters()) == fixture.meta["parameter_count"]
    images = fixture.inputs()[""]
    size = (images.shape[-2], images.shape[-1])
    pyramid = net.neck(net.backbone(images))
    maps = net.head(pyramid)
    anchors = torch.cat(
        [
            grid_anchors(cell, (x.shape[2], x.shape[3]), (stride, stride))
            for cell, x, stride in zip(base, pyramid, strides, strict=True)
        ]
    )
    said = re.search(r"maps of image 0 times (\d[\d.]*)", " ".join(fixture.meta.get("notes", [])))
    deltas = (float(said[1]) if said else 0.3) * flatten_levels(maps["regress"], 4)[0]
    stages = {
        "anchors": anchors,
        "decoded_boxes": clip_boxes(decode_boxes(deltas, anchors, clamp_both=True), size),
    }
    for i, level in enumerate(pyramid):
        stages |= {
            f"fpn.P{i + MERGED}": level,
            f"cls.P{i + MERGED}": anchor_major(maps["classify"][i], per_cell),
            f"reg.P{i + MERGED}": anchor_major(maps["regress"][i], per_cell),
        }
    check_all(fixture, stages)


def anchor_major(maps: Tensor, per_cell: int) -> Tensor:
    """[B, C * A, h, w] with all anchors of a number together → with all numbers of an anchor."""
    return maps.unflatten(1, (-1, per_cell)).transpose(1, 2).flatten(1, 2)


RUNNERS: dict[str, Callable[[Fixture], None]] = {"mmdet_retinanet_": run_retinanet}
