"""SYSTEMS: the one table of segmentation systems, and the two functions that read it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from difflib import get_close_matches
from fnmatch import fnmatch
from typing import Any

from torch import nn

from pixelwise.errors import UsageError
from pixelwise.spec import (
    CAFFE_BGR,
    DEEPLAB_BGR,
    DETECTION_RGB,
    FCIS_BGR,
    FCN_BGR,
    IMAGENET_RGB,
    LITE_RGB,
    POLARMASK_BGR,
    SOLO_LIGHT_RGB,
    YOLACT_RGB,
    InputSpec,
    ResizeRule,
    Task,
)
from pixelwise.systems.bisenet import BiSeNet, BiSeNetConfig
from pixelwise.systems.blendmask import BlendMask, BlendMaskConfig
from pixelwise.systems.deeplabv1 import DeepLabV1, DeepLabV1Config
from pixelwise.systems.deeplabv2 import DeepLabV2, DeepLabV2Config
from pixelwise.systems.deeplabv3 import DeepLabV3, DeepLabV3Config
from pixelwise.systems.deeplabv3plus import DeepLabV3Plus, DeepLabV3PlusConfig
from pixelwise.systems.efficientfcn import EfficientFCN, EfficientFCNConfig
from pixelwise.systems.embedding import Embedding, EmbeddingConfig
from pixelwise.systems.fcis import FCIS, FCISConfig
from pixelwise.systems.fcn import FCN, FCNConfig
from pixelwise.systems.gcn import GCN, GCNConfig
from pixelwise.systems.mask_rcnn import MaskRCNN, MaskRCNNConfig
from pixelwise.systems.mask_scoring_rcnn import MaskScoringRCNN, MaskScoringRCNNConfig
from pixelwise.systems.panet import PANet, PANetConfig
from pixelwise.systems.parsenet import ParseNet, ParseNetConfig
from pixelwise.systems.polarmask import PolarMask, PolarMaskConfig
from pixelwise.systems.pspnet import PSPNet, PSPNetConfig
from pixelwise.systems.rfcn import RFCN, RFCNConfig
from pixelwise.systems.solo import SOLO, SOLOConfig
from pixelwise.systems.unet import UNet, UNetConfig
from pixelwise.systems.yolact import YOLACT, YOLACTConfig


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One row of the table: what `create` needs to build a system.

    Args:
        system: the class; called with its config alone.
        config: the variant's values.
        input:  how it is fed.
        task:   "semantic" or "instance".
    """

    system: type[nn.Module]
    config: Any
    input: InputSpec
    task: Task


# fmt: off
SYSTEMS: dict[str, Entry] = {
    "bisenet": Entry(system=BiSeNet, config=BiSeNetConfig(), input=IMAGENET_RGB, task="semantic"),
    "bisenet_xception39": Entry(system=BiSeNet, config=BiSeNetConfig(backbone="xception39"), input=IMAGENET_RGB, task="semantic"),
    "bisenet_resnet50": Entry(system=BiSeNet, config=BiSeNetConfig(backbone="resnet50"), input=IMAGENET_RGB, task="semantic"),
    "bisenet_efficientnet_lite0": Entry(system=BiSeNet, config=BiSeNetConfig(backbone="tf_efficientnet_lite0"), input=InputSpec(mean=(127 / 255,) * 3, std=(128 / 255,) * 3), task="semantic"),
    "blendmask": Entry(system=BlendMask, config=BlendMaskConfig(), input=replace(CAFFE_BGR, resize=DETECTION_RGB.resize), task="instance"),
    "blendmask_resnet50": Entry(system=BlendMask, config=BlendMaskConfig(), input=replace(CAFFE_BGR, resize=DETECTION_RGB.resize), task="instance"),
    "blendmask_resnet101": Entry(system=BlendMask, config=BlendMaskConfig(backbone="resnet101"), input=replace(CAFFE_BGR, resize=DETECTION_RGB.resize), task="instance"),
    "blendmask_resnet50_decoder": Entry(system=BlendMask, config=BlendMaskConfig(bottom="decoder"), input=replace(CAFFE_BGR, resize=DETECTION_RGB.resize), task="instance"),
    "blendmask_550_resnet50": Entry(system=BlendMask, config=BlendMaskConfig(levels=4, head_convs=0, shared_convs=3, bottom_convs=2), input=replace(CAFFE_BGR, resize=ResizeRule(short_side=550, long_side=916, pad_divisor=32)), task="instance"),
    "blendmask_rt_resnet50": Entry(system=BlendMask, config=BlendMaskConfig(backbone_norm="sync", levels=3, head_convs=0, shared_convs=3, bottom_convs=2), input=replace(CAFFE_BGR, resize=ResizeRule(short_side=512, long_side=736, pad_divisor=32)), task="instance"),
    "blendmask_lite0": Entry(system=BlendMask, config=BlendMaskConfig(backbone="tf_efficientnet_lite0", channels=64, levels=4, head_convs=0, shared_convs=2, bottom_convs=2, bottom_width=32), input=InputSpec(mean=(127 / 255,) * 3, std=(128 / 255,) * 3, resize=ResizeRule(short_side=320, long_side=640, pad_divisor=32)), task="instance"),
    "deeplabv1": Entry(system=DeepLabV1, config=DeepLabV1Config(), input=DEEPLAB_BGR, task="semantic"),
    "deeplabv1_msc": Entry(system=DeepLabV1, config=DeepLabV1Config(with_branches=True), input=DEEPLAB_BGR, task="semantic"),
    "deeplabv1_7x7": Entry(system=DeepLabV1, config=DeepLabV1Config(fc_kernel=7, fc_rate=4, fc_width=4096, with_average_pool=False, backbone_style="caffe", align_corners=False), input=DEEPLAB_BGR, task="semantic"),
    "deeplabv1_4x4": Entry(system=DeepLabV1, config=DeepLabV1Config(fc_kernel=4, fc_rate=4, fc_width=4096, with_average_pool=False, backbone_style="caffe", align_corners=False), input=DEEPLAB_BGR, task="semantic"),
    "deeplabv1_efficientnet_lite0": Entry(system=DeepLabV1, config=DeepLabV1Config(backbone="tf_efficientnet_lite0", fc_width=256, with_average_pool=False, align_corners=False), input=InputSpec(mean=(127 / 255,) * 3, std=(128 / 255,) * 3), task="semantic"),
    "deeplabv2": Entry(system=DeepLabV2, config=DeepLabV2Config(), input=DEEPLAB_BGR, task="semantic"),
    "deeplabv2_resnet101": Entry(system=DeepLabV2, config=DeepLabV2Config(), input=DEEPLAB_BGR, task="semantic"),
    "deeplabv2_vgg16": Entry(system=DeepLabV2, config=DeepLabV2Config(backbone="vgg16", branch_width=1024), input=DEEPLAB_BGR, task="semantic"),
    "deeplabv2_efficientnet_lite0": Entry(system=DeepLabV2, config=DeepLabV2Config(backbone="tf_efficientnet_lite0", norm="batch", align_corners=False), input=InputSpec(mean=(127 / 255,) * 3, std=(128 / 255,) * 3), task="semantic"),
    "deeplabv3": Entry(system=DeepLabV3, config=DeepLabV3Config(), input=IMAGENET_RGB, task="semantic"),
    "deeplabv3_resnet101": Entry(system=DeepLabV3, config=DeepLabV3Config(), input=IMAGENET_RGB, task="semantic"),
    "deeplabv3_resnet50": Entry(system=DeepLabV3, config=DeepLabV3Config(backbone="resnet50"), input=IMAGENET_RGB, task="semantic"),
    "deeplabv3_mobilenet_v3_large": Entry(system=DeepLabV3, config=DeepLabV3Config(backbone="mobilenet_v3_large", backbone_style="torchvision", aspp_rates=(12, 24, 36), image_pool="last", projection="1x1+3x3", aspp_dropout=0.5, align_corners=False, aux_weight=0.5, aux_level=3), input=IMAGENET_RGB, task="semantic"),
    "deeplabv3_efficientnet_lite0": Entry(system=DeepLabV3, config=DeepLabV3Config(backbone="tf_efficientnet_lite0", aspp_width=128, align_corners=False), input=InputSpec(mean=(127 / 255,) * 3, std=(128 / 255,) * 3), task="semantic"),
    "deeplabv3plus": Entry(system=DeepLabV3Plus, config=DeepLabV3PlusConfig(), input=IMAGENET_RGB, task="semantic"),
    "deeplabv3plus_xception65": Entry(system=DeepLabV3Plus, config=DeepLabV3PlusConfig(), input=InputSpec(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)), task="semantic"),
    "deeplabv3plus_xception71": Entry(system=DeepLabV3Plus, config=DeepLabV3PlusConfig(backbone="xception71"), input=InputSpec(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)), task="semantic"),
    "deeplabv3plus_resnet50": Entry(system=DeepLabV3Plus, config=DeepLabV3PlusConfig(backbone="resnet50", backbone_style="uniform", multi_grid=(1, 2, 4)), input=IMAGENET_RGB, task="semantic"),
    "deeplabv3plus_resnet101": Entry(system=DeepLabV3Plus, config=DeepLabV3PlusConfig(backbone="resnet101", backbone_style="uniform", multi_grid=(1, 2, 4)), input=IMAGENET_RGB, task="semantic"),
    "deeplabv3plus_efficientnet_lite0": Entry(system=DeepLabV3Plus, config=DeepLabV3PlusConfig(backbone="tf_efficientnet_lite0", aspp_width=128, decoder_width=128, align_corners=False), input=InputSpec(mean=(127 / 255,) * 3, std=(128 / 255,) * 3), task="semantic"),
    "efficientfcn": Entry(system=EfficientFCN, config=EfficientFCNConfig(), input=IMAGENET_RGB, task="semantic"),
    "efficientfcn_resnet50": Entry(system=EfficientFCN, config=EfficientFCNConfig(backbone="resnet50"), input=IMAGENET_RGB, task="semantic"),
    "efficientfcn_efficientnet_lite0": Entry(system=EfficientFCN, config=EfficientFCNConfig(backbone="tf_efficientnet_lite0", compress_width=128, codewords=64, codeword_width=256), input=InputSpec(mean=(127 / 255,) * 3, std=(128 / 255,) * 3), task="semantic"),
    "embedding": Entry(system=Embedding, config=EmbeddingConfig(), input=DETECTION_RGB, task="instance"),
    "embedding_lite0": Entry(system=Embedding, config=EmbeddingConfig(backbone="tf_efficientnet_lite0", backbone_norm="frozen", decoder_norm="group", decoder_widths=(128, 64, 32), position_scale=0.1), input=LITE_RGB, task="instance"),
    "fcis": Entry(system=FCIS, config=FCISConfig(), input=FCIS_BGR, task="instance"),
    "fcis_coco": Entry(system=FCIS, config=FCISConfig(num_classes=80, anchor_sizes=(64, 128, 256, 512), with_ohem=True, min_side_px=2.0), input=FCIS_BGR, task="instance"),
    "fcis_resnet50": Entry(system=FCIS, config=FCISConfig(backbone="resnet50"), input=FCIS_BGR, task="instance"),
    "fcis_lite0": Entry(system=FCIS, config=FCISConfig(backbone="tf_efficientnet_lite0", width=256, rpn_width=128, anchor_sizes=(16, 32, 64, 128, 256), min_side_px=2.0), input=LITE_RGB, task="instance"),
    "fcn": Entry(system=FCN, config=FCNConfig(), input=IMAGENET_RGB, task="semantic"),
    "fcn8s_vgg16": Entry(system=FCN, config=FCNConfig(), input=IMAGENET_RGB, task="semantic"),
    "fcn8s_vgg16_pad100": Entry(system=FCN, config=FCNConfig(with_border=True), input=FCN_BGR, task="semantic"),
    "fcn8s_vgg16_pad100_at_once": Entry(system=FCN, config=FCNConfig(with_border=True, skip_scales=(0.01, 0.0001)), input=FCN_BGR, task="semantic"),
    "fcn16s_vgg16": Entry(system=FCN, config=FCNConfig(output_stride=16), input=IMAGENET_RGB, task="semantic"),
    "fcn16s_vgg16_pad100": Entry(system=FCN, config=FCNConfig(output_stride=16, with_border=True), input=FCN_BGR, task="semantic"),
    "fcn32s_vgg16": Entry(system=FCN, config=FCNConfig(output_stride=32), input=IMAGENET_RGB, task="semantic"),
    "fcn32s_vgg16_pad100": Entry(system=FCN, config=FCNConfig(output_stride=32, with_border=True), input=FCN_BGR, task="semantic"),
    "fcn32s_alexnet": Entry(system=FCN, config=FCNConfig(backbone="alexnet", output_stride=32, fc_kernel=6), input=FCN_BGR, task="semantic"),
    "fcn32s_alexnet_pad100": Entry(system=FCN, config=FCNConfig(backbone="alexnet", output_stride=32, fc_kernel=6, with_border=True), input=FCN_BGR, task="semantic"),
    "fcn_resnet50": Entry(system=FCN, config=FCNConfig(backbone="resnet50", head="convs", dropout=0.1, aux_weight=0.5), input=IMAGENET_RGB, task="semantic"),
    "fcn_resnet101": Entry(system=FCN, config=FCNConfig(backbone="resnet101", head="convs", dropout=0.1, aux_weight=0.5), input=IMAGENET_RGB, task="semantic"),
    "fcn_resnet50_v1c": Entry(system=FCN, config=FCNConfig(backbone="resnet50", backbone_style="v1c", head="concat", head_depth=3, dropout=0.1, aux_weight=0.4), input=IMAGENET_RGB, task="semantic"),
    "fcn_resnet101_v1c": Entry(system=FCN, config=FCNConfig(backbone="resnet101", backbone_style="v1c", head="concat", head_depth=3, dropout=0.1, aux_weight=0.4), input=IMAGENET_RGB, task="semantic"),
    "fcn_efficientnet_lite0": Entry(system=FCN, config=FCNConfig(backbone="tf_efficientnet_lite0", fc_width=0), input=InputSpec(mean=(127 / 255,) * 3, std=(128 / 255,) * 3), task="semantic"),
    "gcn": Entry(system=GCN, config=GCNConfig(), input=IMAGENET_RGB, task="semantic"),
    "gcn_resnet50": Entry(system=GCN, config=GCNConfig(backbone="resnet50"), input=IMAGENET_RGB, task="semantic"),
    "gcn_efficientnet_lite0": Entry(system=GCN, config=GCNConfig(backbone="tf_efficientnet_lite0"), input=InputSpec(mean=(127 / 255,) * 3, std=(128 / 255,) * 3), task="semantic"),
    "mask_rcnn": Entry(system=MaskRCNN, config=MaskRCNNConfig(), input=DETECTION_RGB, task="instance"),
    "mask_rcnn_resnet50_fpn": Entry(system=MaskRCNN, config=MaskRCNNConfig(), input=DETECTION_RGB, task="instance"),
    "mask_rcnn_resnet101_fpn": Entry(system=MaskRCNN, config=MaskRCNNConfig(backbone="resnet101"), input=DETECTION_RGB, task="instance"),
    "mask_rcnn_resnext101_fpn": Entry(system=MaskRCNN, config=MaskRCNNConfig(backbone="resnext101_32x8d"), input=DETECTION_RGB, task="instance"),
    "mask_rcnn_resnet50_fpn_v2": Entry(system=MaskRCNN, config=MaskRCNNConfig(backbone_norm="batch", box_head="4conv1fc", head_norm="batch", rpn_convs=2, conventions="torchvision", proposals=(2000, 1000)), input=DETECTION_RGB, task="instance"),
    "mask_rcnn_resnet50_fpn_gn": Entry(system=MaskRCNN, config=MaskRCNNConfig(backbone_norm="group", box_head="4conv1fc", head_norm="group"), input=DETECTION_RGB, task="instance"),
    "mask_rcnn_resnet50_c4": Entry(system=MaskRCNN, config=MaskRCNNConfig(neck="c4", pre_nms=(12000, 6000), proposals=(2000, 1000)), input=DETECTION_RGB, task="instance"),
    "mask_rcnn_resnet50_dc5": Entry(system=MaskRCNN, config=MaskRCNNConfig(neck="dc5", pre_nms=(12000, 6000), proposals=(2000, 1000)), input=DETECTION_RGB, task="instance"),
    "mask_rcnn_lite0_fpn": Entry(system=MaskRCNN, config=MaskRCNNConfig(backbone="tf_efficientnet_lite0", channels=64, anchor_sizes=(16, 32, 64, 128, 256), pre_nms=(600, 400), proposals=(400, 300), regions_per_image=128), input=LITE_RGB, task="instance"),
    "mask_scoring_rcnn": Entry(system=MaskScoringRCNN, config=MaskScoringRCNNConfig(), input=DETECTION_RGB, task="instance"),
    "mask_scoring_rcnn_resnet50_fpn": Entry(system=MaskScoringRCNN, config=MaskScoringRCNNConfig(), input=DETECTION_RGB, task="instance"),
    "mask_scoring_rcnn_resnet101_fpn": Entry(system=MaskScoringRCNN, config=MaskScoringRCNNConfig(backbone="resnet101"), input=DETECTION_RGB, task="instance"),
    "mask_scoring_rcnn_lite0_fpn": Entry(system=MaskScoringRCNN, config=MaskScoringRCNNConfig(backbone="tf_efficientnet_lite0", channels=64, anchor_sizes=(16, 32, 64, 128, 256), pre_nms=(600, 400), proposals=(400, 300), regions_per_image=128), input=LITE_RGB, task="instance"),
    "panet": Entry(system=PANet, config=PANetConfig(), input=DETECTION_RGB, task="instance"),
    "panet_resnet50_fpn": Entry(system=PANet, config=PANetConfig(path="linear", neck_norm=None, box_head="2fc", head_norm=None), input=DETECTION_RGB, task="instance"),
    "panet_resnet101": Entry(system=PANet, config=PANetConfig(backbone="resnet101"), input=DETECTION_RGB, task="instance"),
    "panet_resnext101_64x4d": Entry(system=PANet, config=PANetConfig(backbone="resnext101_64x4d"), input=DETECTION_RGB, task="instance"),
    "panet_lite0_fpn": Entry(system=PANet, config=PANetConfig(backbone="tf_efficientnet_lite0", channels=64, anchor_sizes=(16, 32, 64, 128, 256), pre_nms=(600, 400), proposals=(400, 300), regions_per_image=128), input=LITE_RGB, task="instance"),
    "parsenet": Entry(system=ParseNet, config=ParseNetConfig(), input=FCN_BGR, task="semantic"),
    "parsenet_conv45": Entry(system=ParseNet, config=ParseNetConfig(skips=(4, 5)), input=FCN_BGR, task="semantic"),
    "parsenet_conv345": Entry(system=ParseNet, config=ParseNetConfig(skips=(3, 4, 5)), input=FCN_BGR, task="semantic"),
    "parsenet_fcn32s": Entry(system=ParseNet, config=ParseNetConfig(backbone_style="caffe", output_stride=32, fc_kernel=7, fc_rate=1, fc_width=4096, align_corners=False), input=FCN_BGR, task="semantic"),
    "parsenet_efficientnet_lite0": Entry(system=ParseNet, config=ParseNetConfig(backbone="tf_efficientnet_lite0", fc_width=256, align_corners=False), input=InputSpec(mean=(127 / 255,) * 3, std=(128 / 255,) * 3), task="semantic"),
    "polarmask": Entry(system=PolarMask, config=PolarMaskConfig(), input=POLARMASK_BGR, task="instance"),
    "polarmask_resnet50": Entry(system=PolarMask, config=PolarMaskConfig(), input=POLARMASK_BGR, task="instance"),
    "polarmask_resnet101": Entry(system=PolarMask, config=PolarMaskConfig(backbone="resnet101"), input=POLARMASK_BGR, task="instance"),
    "polarmask_resnext101_64x4d": Entry(system=PolarMask, config=PolarMaskConfig(backbone="resnext101_64x4d", backbone_style="pytorch"), input=replace(DETECTION_RGB, resize=POLARMASK_BGR.resize), task="instance"),
    "polarmask_lite0": Entry(system=PolarMask, config=PolarMaskConfig(backbone="tf_efficientnet_lite0", channels=64, head_convs=2, strides=(4, 8, 16, 32, 64), range_bounds=(32, 64, 128, 256), conventions="fine"), input=LITE_RGB, task="instance"),
    "pspnet": Entry(system=PSPNet, config=PSPNetConfig(), input=IMAGENET_RGB, task="semantic"),
    "pspnet_resnet50": Entry(system=PSPNet, config=PSPNetConfig(backbone="resnet50"), input=IMAGENET_RGB, task="semantic"),
    "pspnet_resnet101": Entry(system=PSPNet, config=PSPNetConfig(), input=IMAGENET_RGB, task="semantic"),
    "pspnet_efficientnet_lite0": Entry(system=PSPNet, config=PSPNetConfig(backbone="tf_efficientnet_lite0", output_stride=16, head_width=128, align_corners=False), input=InputSpec(mean=(127 / 255,) * 3, std=(128 / 255,) * 3), task="semantic"),
    "rfcn": Entry(system=RFCN, config=RFCNConfig(), input=FCIS_BGR, task="instance"),
    "rfcn_lite0": Entry(system=RFCN, config=RFCNConfig(backbone="tf_efficientnet_lite0", width=256, rpn_width=128, anchor_sizes=(16, 32, 64, 128, 256), min_side_px=2.0), input=LITE_RGB, task="instance"),
    "solo": Entry(system=SOLO, config=SOLOConfig(), input=DETECTION_RGB, task="instance"),
    "solo_resnet50": Entry(system=SOLO, config=SOLOConfig(), input=DETECTION_RGB, task="instance"),
    "solo_resnet101": Entry(system=SOLO, config=SOLOConfig(backbone="resnet101"), input=DETECTION_RGB, task="instance"),
    "decoupled_solo": Entry(system=SOLO, config=SOLOConfig(form="decoupled"), input=DETECTION_RGB, task="instance"),
    "decoupled_solo_resnet101": Entry(system=SOLO, config=SOLOConfig(form="decoupled", backbone="resnet101"), input=DETECTION_RGB, task="instance"),
    "decoupled_solo_light": Entry(system=SOLO, config=SOLOConfig(form="light", head_convs=4, scale_ranges=((1, 64), (32, 128), (64, 256), (128, 512), (256, 2048))), input=SOLO_LIGHT_RGB, task="instance"),
    "decoupled_solo_lite0": Entry(system=SOLO, config=SOLOConfig(form="light", backbone="tf_efficientnet_lite0", channels=64, head_width=64, head_convs=3, scale_ranges=((1, 64), (32, 128), (64, 256), (128, 512), (256, 2048))), input=LITE_RGB, task="instance"),
    "decoupled_solo_rt": Entry(system=SOLO, config=SOLOConfig(form="light", backbone="mobilenetv4_conv_small", channels=48, head_width=48, head_convs=2, grids=(32, 24, 20, 16, 12), scale_ranges=((1, 64), (32, 128), (64, 256), (128, 512), (256, 2048)), cells_per_level=24), input=InputSpec(resize=ResizeRule(short_side=480, long_side=640, pad_divisor=32)), task="instance"),
    "solov2": Entry(system=SOLO, config=SOLOConfig(form="dynamic", head_width=512, head_convs=4), input=DETECTION_RGB, task="instance"),
    "solov2_resnet101": Entry(system=SOLO, config=SOLOConfig(form="dynamic", backbone="resnet101", head_width=512, head_convs=4), input=DETECTION_RGB, task="instance"),
    "solov2_lite0": Entry(system=SOLO, config=SOLOConfig(form="dynamic", backbone="tf_efficientnet_lite0", channels=64, head_width=64, head_convs=3, kernel_width=64, scale_ranges=((1, 64), (32, 128), (64, 256), (128, 512), (256, 2048))), input=LITE_RGB, task="instance"),
    "unet": Entry(system=UNet, config=UNetConfig(), input=IMAGENET_RGB, task="semantic"),
    "unet_s5_d16": Entry(system=UNet, config=UNetConfig(padding="same", upsample="bilinear", norm="batch", dropout=0.0, head_width=64, aux_weight=0.4, aux_width=64), input=IMAGENET_RGB, task="semantic"),
    "unet_resnet34": Entry(system=UNet, config=UNetConfig(backbone="resnet34", decoder_widths=(256, 128, 64, 32, 16), padding="same", upsample="nearest", norm="batch", dropout=0.0, head_kernel=3), input=IMAGENET_RGB, task="semantic"),
    "unet_efficientnet_lite0": Entry(system=UNet, config=UNetConfig(backbone="tf_efficientnet_lite0", decoder_widths=(128, 64, 32, 16, 16), padding="same", upsample="nearest", norm="batch", dropout=0.0, head_kernel=3), input=InputSpec(mean=(127 / 255,) * 3, std=(128 / 255,) * 3), task="semantic"),
    "yolact": Entry(system=YOLACT, config=YOLACTConfig(), input=YOLACT_RGB, task="instance"),
    "yolact_resnet50": Entry(system=YOLACT, config=YOLACTConfig(backbone="resnet50"), input=YOLACT_RGB, task="instance"),
    "yolact_resnet101": Entry(system=YOLACT, config=YOLACTConfig(), input=YOLACT_RGB, task="instance"),
    "yolact_darknet53": Entry(system=YOLACT, config=YOLACTConfig(backbone="darknet53"), input=InputSpec(mean=(0.0,) * 3, std=(1.0,) * 3, resize=ResizeRule(fixed=(550, 550))), task="instance"),
    "yolact_400": Entry(system=YOLACT, config=YOLACTConfig(anchor_sizes=(17, 34, 69, 139, 279)), input=replace(YOLACT_RGB, resize=ResizeRule(fixed=(400, 400))), task="instance"),
    "yolact_700": Entry(system=YOLACT, config=YOLACTConfig(anchor_sizes=(30, 61, 122, 244, 488), masks_per_image=300), input=replace(YOLACT_RGB, resize=ResizeRule(fixed=(700, 700))), task="instance"),
    "yolact_resnet50_pascal": Entry(system=YOLACT, config=YOLACTConfig(num_classes=20, backbone="resnet50", anchor_sizes=(32, 64, 128, 256, 512), square_anchors=False), input=YOLACT_RGB, task="instance"),
    "yolact_lite0": Entry(system=YOLACT, config=YOLACTConfig(backbone="tf_efficientnet_lite0", backbone_norm="frozen", channels=64, anchor_sizes=(14, 28, 56, 112, 224), square_anchors=False), input=InputSpec(mean=(127 / 255,) * 3, std=(128 / 255,) * 3, resize=ResizeRule(fixed=(320, 320))), task="instance"),
    "yolact_rt": Entry(system=YOLACT, config=YOLACTConfig(backbone="mobilenetv4_conv_small", backbone_norm="frozen", channels=64, anchor_sizes=(21, 42, 84, 168, 336), square_anchors=False), input=InputSpec(resize=ResizeRule(short_side=480, long_side=640, pad_divisor=32)), task="instance"),
    "yolactpp": Entry(system=YOLACT, config=YOLACTConfig(deform_interval=3, scales_per_octave=3, square_anchors=False, with_rescoring=True), input=YOLACT_RGB, task="instance"),
    "yolactpp_resnet50": Entry(system=YOLACT, config=YOLACTConfig(backbone="resnet50", deform_interval=1, scales_per_octave=3, square_anchors=False, with_rescoring=True), input=YOLACT_RGB, task="instance"),
    "yolactpp_resnet101": Entry(system=YOLACT, config=YOLACTConfig(deform_interval=3, scales_per_octave=3, square_anchors=False, with_rescoring=True), input=YOLACT_RGB, task="instance"),
}
# fmt: on


def find(name: str) -> Entry:
    """The row of `SYSTEMS` with this name.

    Raises:
        UsageError: no such row; the message lists the closest names.
    """
    if name in SYSTEMS:
        return SYSTEMS[name]
    close = get_close_matches(name, SYSTEMS, n=3, cutoff=0.4)
    hint = f"did you mean {', '.join(close)}?" if close else "see `pixelwise models list`"
    raise UsageError(f"no system is named {name!r}; {hint}")


def configure(name: str, overrides: Mapping[str, Any]) -> Any:
    """The config of a row with some fields changed.

    Raises:
        UsageError: an override is no field of the system's config.
    """
    config = find(name).config
    known = [field.name for field in fields(config)]
    for key in overrides:
        if key not in known:
            close = get_close_matches(key, known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"it has {', '.join(known)}"
            raise UsageError(f"{name} has no setting {key!r}; {hint}")
    return replace(config, **overrides)


def create(name: str, **overrides: Any) -> nn.Module:
    """Build a system by name, with any field of its config changed.

    >>> net = create("deeplabv3plus", backbone="resnet50", num_classes=7)   # doctest: +SKIP

    Args:
        name:      a row of `SYSTEMS`.
        overrides: fields of the system's config.

    Returns:
        A plain `nn.Module` that follows the `System` contract, in training mode.

    Raises:
        UsageError: unknown name or field; the message lists the closest ones.
    """
    return find(name).system(configure(name, overrides))


def list_systems(pattern: str = "*", *, task: Task | None = None) -> list[str]:
    """Names of the systems that match a shell pattern, in the order of the table."""
    return [
        name
        for name, entry in SYSTEMS.items()
        if fnmatch(name, pattern) and task in (None, entry.task)
    ]
