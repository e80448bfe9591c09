"""What files say about themselves is read without running anything."""

import pytest

from pixelwise.convert.statements import parse_config, plain, read_statements
from pixelwise.convert.unpickle import Foreign

DEEPLAB = """
norm_cfg = dict(type='SyncBN', requires_grad=True)
model = dict(
    type='EncoderDecoder',
    backbone=dict(type='ResNetV1c', depth=101, strides=(1, 2, 2, 1), dilations=(1, 1, 1, 2),
                  multi_grid=(1, 2, 4)),
    decode_head=dict(type='ASPPHead', dilations=(1, 6, 12, 18), align_corners=False))
img_norm_cfg = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True)
evil = __import__('os').system('touch owned')
"""
RCNN = """
model = dict(
    type='MaskRCNN',
    data_preprocessor=dict(mean=[103.53, 116.28, 123.675], std=[1.0, 1.0, 1.0],
                           bgr_to_rgb=False, pad_size_divisor=32),
    backbone=dict(type='ResNet', depth=50, style='caffe'),
    rpn_head=dict(anchor_generator=dict(type='AnchorGenerator', scales=[4], ratios=[0.5, 1.0],
                                        strides=[4, 8, 16, 32, 64])),
    roi_head=dict(type='StandardRoIHead'),
    test_cfg=dict(rpn=dict(nms_pre=900, max_per_img=700),
                  rcnn=dict(score_thr=0.1, nms=dict(type='nms', iou_threshold=0.45),
                            max_per_img=77)))
"""
SOLO = """
model = dict(type='SOLO', mask_head=dict(num_grids=[40, 36], scale_ranges=((1, 96), (48, 192))),
             test_cfg=dict(nms_pre=400, score_thr=0.2, mask_thr=0.4, filter_thr=0.06,
                           max_per_img=9))
"""
YOLACT = """
model = dict(type='YOLACT', bbox_head=dict(anchor_generator=dict(base_sizes=[8, 16, 32])))
"""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            DEEPLAB,
            {
                "output_stride": 16,
                "multi_grid": (1, 2, 4),
                "aspp_rates": (6, 12, 18),
                "align_corners": False,
            },
        ),
        (
            RCNN,
            {
                "backbone_style": "caffe",
                "anchor_sizes": (16, 32, 64, 128, 256),
                "anchor_ratios": (0.5, 1.0),
                "pre_nms": (2000, 900),
                "proposals": (1000, 700),
                "score_thresh": 0.1,
                "iou_thresh": 0.45,
                "detections_per_image": 77,
            },
        ),
        (
            SOLO,
            {
                "grids": (40, 36),
                "scale_ranges": ((1, 96), (48, 192)),
                "score_thresh": 0.2,
                "mask_thresh": 0.4,
                "final_thresh": 0.06,
                "candidates": 400,
                "detections_per_image": 9,
            },
        ),
        (YOLACT, {"anchor_sizes": (8, 16, 32)}),
    ],
    ids=["deeplab", "mask_rcnn", "solo", "yolact"],
)
def test_configurations_of_openmmlab(text, expected) -> None:
    said = read_statements({"meta": {"config": text}}, "epoch_12.pth")
    assert said.settings == expected
    assert set(said.sources.values()) == {"the configuration in the file"}


def test_preprocessing_of_openmmlab() -> None:
    rgb = read_statements({"meta": {"cfg": DEEPLAB}}, "a.pth").input
    assert rgb is not None
    assert (rgb.mean, rgb.channel_order, rgb.scale) == ((123.675, 116.28, 103.53), "rgb", 1.0)
    bgr = read_statements({"meta": {"cfg": RCNN}}, "a.pth").input
    assert bgr is not None
    assert (bgr.std, bgr.channel_order, bgr.resize.pad_divisor) == ((1.0, 1.0, 1.0), "bgr", 32)


@pytest.mark.parametrize(
    "meta",
    [
        {"CLASSES": ("a", "b"), "PALETTE": [[1, 2, 3], [4, 5, 6]]},
        {"dataset_meta": {"classes": ["a", "b"], "palette": [(1, 2, 3), (4, 5, 6)]}},
        Foreign(
            "mmcv.Config", (), items={"CLASSES": ["a", "b"], "PALETTE": [[1, 2, 3], [4, 5, 6]]}
        ),
    ],
    ids=["mmcv", "mmengine", "an object"],
)
def test_classes_and_palette(meta) -> None:
    said = read_statements({"meta": meta}, "a.pth")
    assert said.classes == ("a", "b")
    assert said.colors == ((1, 2, 3), (4, 5, 6))


@pytest.mark.parametrize(
    ("name", "row", "settings"),
    [
        ("yolact_base_54_800000.pth", "yolact_resnet101", {}),
        ("yolact_im700_54_800000.pth", "yolact_700", {}),
        ("yolact_resnet50_54_800000.pth", "yolact_resnet50", {}),
        ("yolact_resnet50_pascal_120000.pth", "yolact_resnet50_pascal", {}),
        ("yolact_plus_base_54_800000.pth", "yolactpp_resnet101", {}),
        ("maskrcnn_resnet50_fpn_coco-bf2d0c1e.pth", None, {"conventions": "torchvision_v1"}),
        ("maskrcnn_resnet50_fpn_v2_coco-73cbd019.pth", None, {"conventions": "torchvision"}),
        ("pspnet_r50-d8_512x1024_40k_cityscapes.pth", None, {"output_stride": 8}),
        (
            "deeplabv3_r101-d16-mg124_512x1024_80k_cityscapes.pth",
            None,
            {"output_stride": 16, "multi_grid": (1, 2, 4), "aspp_rates": (6, 12, 18)},
        ),
        ("model_final.pth", None, {}),
    ],
)
def test_names_of_released_files(name, row, settings) -> None:
    said = read_statements({}, name)
    assert said.row == row
    assert {key: said.settings.get(key) for key in settings} == settings
    assert settings or not said.settings


def test_the_configuration_counts_more_than_the_name() -> None:
    said = read_statements({"meta": {"config": DEEPLAB}}, "deeplabv3_r50-d8_cityscapes.pth")
    assert said.settings["output_stride"] == 16


def test_nothing_is_executed(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert parse_config(DEEPLAB)["evil"] is None
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "text",
    ["model = dict(", "x" * 3_000_000, "(" * 5000, "a = " + "-" * 100_000 + "1", "\0"],
    ids=["broken", "long", "deep", "deep minus", "null byte"],
)
def test_text_that_is_no_configuration_says_nothing(text) -> None:
    assert not parse_config(text).get("model")
    assert read_statements({"meta": {"config": text}}, "a.pth").settings == {}


@pytest.mark.parametrize("meta", [None, 3, [], {"CLASSES": 7}, {"config": {"model": 1}}, "text"])
def test_strange_meta_data_says_nothing(meta) -> None:
    said = read_statements({"meta": meta}, "a.pth")
    assert (said.settings, said.classes, said.input) == ({}, (), None)


def test_objects_in_a_circle_end() -> None:
    loop: dict = {}
    loop["self"] = loop
    assert plain({"a": loop})["a"]["self"]["self"]


def test_averaged_weights_are_mentioned() -> None:
    assert "model_ema" in read_statements({"model_ema": {}}, "a.pth").notes[0]
