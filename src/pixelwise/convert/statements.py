"""What a checkpoint file says about itself: OpenMMLab's meta data, arguments, its own name.

A configuration is Python text; it is parsed, and literals are read from the tree. Nothing of it is
executed.
"""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from pixelwise.convert.unpickle import Foreign
from pixelwise.errors import PixelwiseError
from pixelwise.spec import InputSpec, ResizeRule

Color = tuple[int, int, int]
Tree = dict[str, Any]

_MAX_TEXT = 1 << 20  # characters of a configuration
_MAX_DEPTH = 40
_CONFIG_KEYS = ("config", "cfg")
_STEM_STRIDE = 4
_META = "the configuration in the file"
FILE_NAME = "the file's name"


@dataclass(kw_only=True)
class Statements:
    """What a file says beside its weights; empty where it says nothing.

    Args:
        settings: fields of a system's config; those that the system lacks are ignored.
        sources:  field → where it is said.
        row:      row of `SYSTEMS` whose untold settings hold.
        classes:  names in label order.
        colors:   one per class.
        input:    how pictures are fed.
        notes:    what the reader of a report should know.
    """

    settings: dict[str, Any] = field(default_factory=dict[str, Any])
    sources: dict[str, str] = field(default_factory=dict[str, str])
    row: str | None = None
    classes: tuple[str, ...] = ()
    colors: tuple[Color, ...] = ()
    input: InputSpec | None = None
    notes: list[str] = field(default_factory=list[str])

    def state(
        self, settings: Mapping[str, Any], source: str, *, before: Sequence[str] = ()
    ) -> None:
        """Add settings; what was stated already counts more, but for what some sources said.

        Args:
            settings: by the names of a config's fields.
            source:   who says so.
            before:   sources that count less than this one.
        """
        for key, value in settings.items():
            if key not in self.settings or self.sources[key] in before:
                self.settings[key] = value
                self.sources[key] = source


def read_statements(about: Mapping[str, Any], file_name: str) -> Statements:
    """Everything that a file says about itself.

    Args:
        about:     what lies beside the state dict in the file.
        file_name: without folders.
    """
    said = Statements()
    meta = _tree(plain(about.get("meta")))
    _read_classes(meta, said)
    config = _config_of(meta) or _config_of(_tree(plain(dict(about))))
    if config:
        said.state(_settings_of(config), _META)
        said.input = _input_of(config)
    _read_file_name(file_name, said)
    averaged = [key for key in about if "ema" in key.lower()]
    if averaged:
        said.notes.append(f"the file also holds averaged weights ({', '.join(averaged)}), not used")
    return said


def plain(value: Any, depth: int = 0) -> Any:
    """Containers without the classes that frameworks give them; what is too deep becomes None."""
    if depth > _MAX_DEPTH:
        return None
    if isinstance(value, Foreign):
        inner = value.attributes().get("_cfg_dict", value.items or value.attributes())
        return plain(inner, depth + 1)
    if isinstance(value, dict):
        items = cast("Tree", value).items()
        return {str(key): plain(entry, depth + 1) for key, entry in items}
    if isinstance(value, list | tuple):
        return [plain(entry, depth + 1) for entry in cast("list[Any]", value)]
    return value


def _tree(value: Any) -> Tree:
    return cast("Tree", value) if isinstance(value, dict) else {}


def _list(value: Any) -> list[Any]:
    return list(cast("Sequence[Any]", value)) if isinstance(value, list | tuple) else []


# Classes and colours.


def _read_classes(meta: Tree, said: Statements) -> None:
    about = {**_tree(meta.get("dataset_meta")), **meta}
    names = _list(about.get("CLASSES") or about.get("classes"))
    colors = [_list(color) for color in _list(about.get("PALETTE") or about.get("palette"))]
    if names and all(isinstance(name, str) for name in names):
        said.classes = tuple(names)
    if len(colors) == len(names) and all(len(c) == 3 for c in colors):
        said.colors = tuple((int(r), int(g), int(b)) for r, g, b in colors)


# Configurations.


def _config_of(holder: Tree) -> Tree:
    for key in _CONFIG_KEYS:
        found = holder.get(key)
        if isinstance(found, str):
            found = parse_config(found)
        if isinstance(found, dict) and isinstance(found.get("model"), dict):
            return cast("Tree", found)
    return {}


def parse_config(text: str) -> Tree:
    r"""The assignments in a configuration's text, as far as they are literals.

    >>> parse_config("model = dict(type='FCN', depth=50, norm=dict(eps=-1.5))\nx = open('y')")
    {'model': {'type': 'FCN', 'depth': 50, 'norm': {'eps': -1.5}}, 'x': None}
    """
    if len(text) > _MAX_TEXT:
        return {}
    try:
        body = ast.parse(text).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return {}
    found: Tree = {}
    for line in body:
        if isinstance(line, ast.Assign) and isinstance(line.targets[0], ast.Name):
            found[line.targets[0].id] = _literal(line.value, 0)
    return found


def _literal(node: ast.expr, depth: int) -> Any:
    """The value of an expression of literals and `dict(...)`; None for anything else."""
    if depth > _MAX_DEPTH:
        return None
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, ast.List | ast.Tuple):
        return [_literal(entry, depth + 1) for entry in node.elts]
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        value = _literal(node.operand, depth + 1)
        return -value if isinstance(value, int | float) else None
    if isinstance(node, ast.Dict):
        keys = [None if key is None else _literal(key, depth + 1) for key in node.keys]
        pairs = zip(keys, node.values, strict=True)
        return {str(key): _literal(value, depth + 1) for key, value in pairs}
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "dict":
        return {k.arg: _literal(k.value, depth + 1) for k in node.keywords if k.arg is not None}
    return None


def _settings_of(config: Tree) -> dict[str, Any]:
    """Settings that OpenMMLab's configuration of a model states, by our names."""
    model = _tree(config.get("model"))
    found: dict[str, Any] = {}
    for read in (_of_backbone, _of_decode_head, _of_proposals, _of_detections, _of_one_stage):
        try:
            found |= {key: value for key, value in read(model) if value is not None}
        except (TypeError, ValueError, KeyError, IndexError, PixelwiseError):
            continue  # a form of configuration that we do not know states nothing
    return found


Settings = Iterator[tuple[str, Any]]


def _of_backbone(model: Tree) -> Settings:
    backbone = _tree(model.get("backbone"))
    strides, style = _list(backbone.get("strides")), backbone.get("style")
    if strides and _tree(model.get("decode_head")).get("type") and "ResNet" in str(backbone):
        yield "output_stride", _STEM_STRIDE * math.prod(strides)
    if model.get("roi_head") and style in ("caffe", "pytorch"):
        yield "backbone_style", style
    yield "multi_grid", _numbers(backbone.get("multi_grid"))


def _of_decode_head(model: Tree) -> Settings:
    heads = model.get("decode_head")
    head = _tree(heads[-1] if isinstance(heads, list) else heads)
    dilations = _numbers(head.get("dilations"))
    if dilations:
        yield "aspp_rates", dilations[1:] if dilations[0] == 1 else dilations
    yield "align_corners", head.get("align_corners")
    yield "bins", _numbers(head.get("pool_scales"))
    yield "head_dilation", head.get("dilation")


def _of_proposals(model: Tree) -> Settings:
    anchors = _tree(_tree(model.get("rpn_head")).get("anchor_generator"))
    strides, scales = _list(anchors.get("strides")), _list(anchors.get("scales"))
    if strides and scales:
        levels = len(strides) > 1
        yield (
            "anchor_sizes",
            tuple(scales[0] * s for s in strides)
            if levels
            else tuple(s * strides[0] for s in scales),
        )
        yield "anchor_ratios", _numbers(anchors.get("ratios"))
    rpn = _tree(_tree(model.get("test_cfg")).get("rpn"))
    if rpn.get("nms_pre"):
        yield "pre_nms", (2000, rpn["nms_pre"])
        yield "proposals", (1000, rpn.get("max_per_img", rpn.get("max_num", rpn["nms_pre"])))


def _of_detections(model: Tree) -> Settings:
    test = _tree(model.get("test_cfg"))
    rcnn = _tree(test.get("rcnn"))
    if rcnn:
        yield "score_thresh", rcnn.get("score_thr")
        yield "iou_thresh", _iou(rcnn.get("nms"))
        yield "detections_per_image", rcnn.get("max_per_img")


def _of_one_stage(model: Tree) -> Settings:
    head = _tree(model.get("mask_head"))
    test = _tree(model.get("test_cfg"))
    if head.get("num_grids"):
        yield "grids", _numbers(head["num_grids"])
        ranges = [_numbers(pair) for pair in _list(head.get("scale_ranges"))]
        yield "scale_ranges", tuple(ranges) or None
        yield "score_thresh", test.get("score_thr")
        yield "mask_thresh", test.get("mask_thr")
        yield "final_thresh", test.get("filter_thr")
        yield "candidates", test.get("nms_pre")
        yield "detections_per_image", test.get("max_per_img")
    anchors = _tree(_tree(model.get("bbox_head")).get("anchor_generator"))
    if str(model.get("type")).upper() == "YOLACT" and anchors.get("base_sizes"):
        yield "anchor_sizes", _numbers(anchors["base_sizes"])


def _iou(nms: Any) -> Any:
    found = _tree(nms)
    return found.get("iou_threshold", found.get("iou_thr"))


def _numbers(values: Any) -> tuple[Any, ...] | None:
    found = _list(values)
    return tuple(found) if found and all(isinstance(v, int | float) for v in found) else None


def _input_of(config: Tree) -> InputSpec | None:
    """Mean, standard deviation and channel order; OpenMMLab's are those of 0..255."""
    given = _tree(_tree(config.get("model")).get("data_preprocessor"))
    given = given or _tree(config.get("img_norm_cfg")) or _tree(config.get("data_preprocessor"))
    mean, std = _numbers(given.get("mean")), _numbers(given.get("std"))
    if mean is None or std is None or len(mean) != len(std) or min(std) <= 0:
        return None
    rgb = given.get("bgr_to_rgb", given.get("to_rgb", True))
    divisor = given.get("pad_size_divisor", 1)
    return InputSpec(
        mean=mean,
        std=std,
        scale=1.0,
        channel_order="rgb" if rgb else "bgr",
        resize=ResizeRule(pad_divisor=divisor if isinstance(divisor, int) else 1),
    )


# Names of released files.


@dataclass(frozen=True)
class _Hint:
    """What a part of a released file's name means."""

    pattern: str
    row: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict[str, Any])


_HINTS = (
    # YOLACT's authors.
    _Hint(r"yolact_plus_base_", "yolactpp_resnet101"),
    _Hint(r"yolact_plus_resnet50_", "yolactpp_resnet50"),
    _Hint(r"yolact_im400_", "yolact_400"),
    _Hint(r"yolact_im700_", "yolact_700"),
    _Hint(r"yolact_darknet53_", "yolact_darknet53"),
    _Hint(r"yolact_resnet50_pascal_", "yolact_resnet50_pascal"),
    _Hint(r"yolact_resnet50_\d", "yolact_resnet50"),
    _Hint(r"yolact_base_", "yolact_resnet101"),
    # torchvision: the frozen norms of its first Mask R-CNN have no epsilon.
    _Hint(r"maskrcnn_resnet50_fpn_coco", settings={"conventions": "torchvision_v1"}),
    _Hint(r"maskrcnn_resnet50_fpn_v2_coco", settings={"conventions": "torchvision"}),
    # mmsegmentation: the output stride, and DeepLabV3's multi-grid.
    _Hint(
        r".*[_-]d16-mg124_",
        settings={"output_stride": 16, "multi_grid": (1, 2, 4), "aspp_rates": (6, 12, 18)},
    ),
    _Hint(r"fcn-d6_.*-d16_", settings={"output_stride": 16, "head_dilation": 6}),
    _Hint(r".*r\d+b?-d16_", settings={"output_stride": 16}),
    _Hint(r".*r\d+b?-d8_", settings={"output_stride": 8, "aspp_rates": (12, 24, 36)}),
    # mmdetection: where the first block of a stage has its stride.
    _Hint(r"mask_rcnn_.*_caffe_", settings={"backbone_style": "caffe"}),
    _Hint(r"mask_rcnn_r\d+_fpn_", settings={"backbone_style": "pytorch"}),
)


def _read_file_name(name: str, said: Statements) -> None:
    for hint in _HINTS:
        if re.match(hint.pattern, name.lower()):
            said.row = hint.row
            said.state(hint.settings, FILE_NAME)
            return
