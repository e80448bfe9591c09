"""Write `torchvision.json` from the weights that the installed torchvision states.

python tools/catalogue/torchvision_zoo.py
"""

from __future__ import annotations

import re
from enum import Enum
from typing import Any

import torchvision
from rows import add_datasets, write_origin
from torchvision.models import detection, segmentation

ABOUT = {
    "origin": "torchvision",
    "project": "https://github.com/pytorch/vision",
    "code_licence": "BSD-3-Clause",
    "licence": "none stated; the project's README leaves terms to the training data",
    "commercial": "unclear",
    "listed_in": f"weight enums of torchvision {torchvision.__version__.split('+')[0]}",
}
# ours -> theirs, with the scale of what they report in per cent
METRICS = {
    "miou": "miou",
    "pixel_accuracy": "pixel_acc",
    "box_ap": "box_map",
    "mask_ap": "mask_map",
}
MODELS: dict[str, tuple[str, type[Enum]]] = {
    "mask_rcnn_resnet50_fpn": ("mask_rcnn", detection.MaskRCNN_ResNet50_FPN_Weights),
    "mask_rcnn_resnet50_fpn_v2": ("mask_rcnn", detection.MaskRCNN_ResNet50_FPN_V2_Weights),
    "fcn_resnet50": ("fcn", segmentation.FCN_ResNet50_Weights),
    "fcn_resnet101": ("fcn", segmentation.FCN_ResNet101_Weights),
    "deeplabv3_resnet50": ("deeplabv3", segmentation.DeepLabV3_ResNet50_Weights),
    "deeplabv3_resnet101": ("deeplabv3", segmentation.DeepLabV3_ResNet101_Weights),
    "deeplabv3_mobilenet_v3_large": (
        "deeplabv3",
        segmentation.DeepLabV3_MobileNet_V3_Large_Weights,
    ),
}

# Its detectors resize and normalise inside: `GeneralizedRCNNTransform`, which smooths nothing.
_DETECTION = {
    "mean": [0.485, 0.456, 0.406],
    "std": [0.229, 0.224, 0.225],
    "scale": 1 / 255,
    "channel_order": "rgb",
    "resize": {"short_side": 800, "long_side": 1333, "pad_divisor": 32, "antialias": False},
}


def main() -> None:
    """Write the rows, and the class names of the two label sets."""
    rows: list[dict[str, Any]] = []
    for name, (system, weights) in MODELS.items():
        (entry,) = weights  # each of them has been published once
        is_coco = entry.name == "COCO_V1"
        hash_prefix = re.search(r"-([0-9a-f]{8})\.pth$", entry.url)
        (reported,) = entry.meta["_metrics"].values()
        row: dict[str, Any] = {
            "name": f"{name}.torchvision_{'coco' if is_coco else 'coco_voc'}",
            "system": system,
            "data": "coco_91" if is_coco else "coco_voc_labels",
            "source": entry.url,
            "sha256": hash_prefix[1],
            "metrics": {
                o: round(reported[t] / 100, 4) for o, t in METRICS.items() if t in reported
            },
        }
        if name == "mask_rcnn_resnet50_fpn":
            row["config"] = {"conventions": "torchvision_v1"}  # norms without an epsilon
        row["input"] = _DETECTION if is_coco else _semantic_input(entry.transforms())
        rows.append(row)
    coco = detection.MaskRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"]
    voc = segmentation.FCN_ResNet50_Weights.COCO_WITH_VOC_LABELS_V1.meta["categories"]
    add_datasets(
        {
            # Without the background, and with the numbers of COCO that stand for nothing.
            "coco_91": [f"unused {i}" if c == "N/A" else c for i, c in enumerate(coco)][1:],
            "coco_voc_labels": ["background" if c == "__background__" else c for c in voc],
        }
    )
    write_origin(ABOUT, rows)


def _semantic_input(preset: Any) -> dict[str, Any]:
    """What torchvision's preset for semantic segmentation does to a picture."""
    return {
        "mean": preset.mean,
        "std": preset.std,
        "scale": 1 / 255,
        "channel_order": "rgb",
        "resize": {"short_side": preset.resize_size[0], "antialias": bool(preset.antialias)},
    }


if __name__ == "__main__":
    main()
