"""What the runners of the parity fixtures read from a fixture's json and name."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from pixelwise.types import InstanceTarget, MaskCrops
from tests.convert.parity import encoder_name, labels_of
from tests.convert.parity_deeplab import apart
from tests.convert.parity_fcos import enlarged
from tests.convert.parity_retinanet import read_pyramid
from tests.convert.test_parity_instance import RUNNERS as INSTANCE
from tests.convert.test_parity_instance import system_of
from tests.convert.test_parity_semantic import RUNNERS as SEMANTIC
from tests.fixtures import Fixture, load_fixture


def fixture_of(name: str, **meta: object) -> Fixture:
    return Fixture(name, {"configuration": [], **meta}, {}, "semantic")


@pytest.mark.parametrize(
    ("name", "words", "encoder"),
    [
        ("smp_unet_resnet34_cls21", ["smp.Unet(encoder_name='resnet34', classes=21)"], None),
        ("smp_unet_tu-xception65_cls21", [], "xception65"),
        ("smp_deeplabv3plus_tu-xception41_os8_cls3", [], "xception41"),
        ("smp_unet_x", ["smp.Unet(encoder_name='tu-convnext_atto', classes=2)"], "convnext_atto"),
    ],
)
def test_encoders_of_timm(name, words, encoder):
    assert encoder_name(fixture_of(name, configuration=words)) == encoder


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("P6 from C5, no ReLU before P7", ("input", False)),
        ("P6 from P5, ReLU before P7", ("output", True)),
        ("P6 from P5, no ReLU before P7", ("output", False)),
    ],
)
def test_pyramids_of_retinanet(words, expected):
    assert read_pyramid(words) == expected


def test_enlarged_lengths():
    ltrb = torch.tensor([0.5, 2.0])
    told = fixture_of("fcos_x", notes=["the regression maps r were replaced by 4 r + 2 before"])
    assert enlarged(told, ltrb).tolist() == [4.0, 10.0]
    assert enlarged(fixture_of("fcos_x"), ltrb).tolist() == [5.0, 17.0]


@pytest.mark.parametrize(
    "name",
    [
        "blendmask_rt_r50",
        "detectron2_maskrcnn_r101_dc5",
        "fcis_r50_coco",
        "fcos_r101",
        "loss_yolact_700",
        "mmdet_decoupled_solo_light_r50",
        "mmdet_maskrcnn_x101_32x4d_pafpn",
        "mmdet_msrcnn_x101_32x4d_fpn",
        "mmdet_retinanet_r18",
        "mmdet_solov2_light_r18",
        "mmdet_yolact_r101_550",
        "panet_r101_gn_mask",
        "polarmask_x101",
        "post_matrix_nms_large",
        "rfcn_psroi_k3_c2",
        "torchvision_maskrcnn_r18_fpn",
        "yolact_darknet53_550",
        "yolactpp_r101_550",
    ],
)
def test_variants_of_instance_fixtures_have_one_place(name):
    runners = [run for prefix, run in INSTANCE.items() if name.startswith(prefix)]
    assert len(runners) + bool(system_of(name)) == 1


@pytest.mark.parametrize(
    "name",
    [
        "caffe_layers_deeplab_msc_largefov_vgg16_voc21",
        "caffe_layers_fcn16s_vgg16_voc21",
        "coincheung_bisenetv1_stuff171",
        "deeplab_pytorch_deeplabv3plus_r101_voc21",
        "efficientfcn_r101_ade150",
        "mmseg_fcn_d6_r50_d16_city19",
        "semseg_pspnet101_ade150",
        "smp_deeplabv3_resnet50_cls3",
        "timm_xception71_os8",
        "torchvision_fcn_resnet101_voc21",
        "zijundeng_fcn16s_vgg16_voc21",
        "zijundeng_gcn_r101_city19",
    ],
)
def test_variants_of_semantic_fixtures_have_one_place(name):
    assert len([run for prefix, run in SEMANTIC.items() if name.startswith(prefix)]) == 1


@pytest.mark.parametrize(
    ("name", "folder", "meta", "kind"),
    [
        ("loss_solo", "", {"input": {}}, "instance"),
        ("losses_semantic", "", {}, "semantic"),
        ("dense_crf_x", "", {}, "semantic"),
        ("smp_unet_x", "", {"inputs": [], "storage": "sample"}, "semantic"),
        ("smp_unet_x", "semantic", {}, "semantic"),
        ("tables_of_anchors", "instance", {}, "instance"),
    ],
)
def test_kinds_of_fixtures(tmp_path: Path, name, folder, meta, kind):
    path = tmp_path / folder / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(meta))
    np.savez(path.with_suffix(".npz"), x=np.zeros(1))
    assert load_fixture(path).kind == kind


def test_distance_of_the_lattice_from_the_brute_force():
    said = {"1": {"max_abs_diff_exact_vs_pydensecrf": 0.3, "argmax_agreement": 0.9}}
    told = fixture_of("dense_crf_x", agreement=said)
    assert apart(told, 1) == pytest.approx((0.302, 0.898))
    assert apart(told, 5) == pytest.approx((0.162, 0.948))
    assert apart(fixture_of("dense_crf_x"), 1) == pytest.approx((0.162, 0.948))


def test_labels_of_an_image_without_objects():
    target = InstanceTarget(
        boxes=torch.zeros(0, 4),
        labels=torch.zeros(0, dtype=torch.int64),
        masks=MaskCrops.empty((4, 4)),
        crowd=torch.zeros(0, dtype=torch.bool),
    )
    assert labels_of(target, torch.tensor([[-1, -1], [-1, -2]]), 7).tolist() == [[7, 7], [7, 7]]
