"""Write `mmseg.json` and `mmdet.json` from the metafiles and configs in OpenMMLab's wheels.

    pip download --no-deps mmsegmentation==1.2.2 mmdet==3.3.0
    python tools/catalogue/openmmlab.py mmsegmentation-1.2.2-*.whl mmdet-3.3.0-*.whl

A metafile says where a checkpoint is and how good; the config that it names says how the network
was built and fed. What our converters do not cover is left out, and listed with the reason.
"""

from __future__ import annotations

import ast
import re
import sys
from collections import Counter
from math import prod
from pathlib import PurePosixPath
from typing import Any
from zipfile import ZipFile

import yaml
from rows import add_datasets, write_origin

Config = dict[str, Any]


class NotOursError(Exception):
    """A checkpoint of a network that our converters do not build."""


ABOUT = {
    "mmseg": {
        "origin": "mmseg",
        "project": "https://github.com/open-mmlab/mmsegmentation",
        "code_licence": "Apache-2.0",
        "licence": "Apache-2.0",  # "License" of each collection in its metafiles
        "commercial": "yes",
        "listed_in": "mmsegmentation 1.2.2, configs/*/metafile.yaml",
    },
    "mmdet": {
        "origin": "mmdet",
        "project": "https://github.com/open-mmlab/mmdetection",
        "code_licence": "Apache-2.0",
        "licence": "none stated for the weights (asked in mmdetection issue 11484)",
        "commercial": "unclear",
        "listed_in": "mmdet 3.3.0, configs/*/metafile.yml",
    },
}
FOLDERS = {
    "mmseg": ("fcn", "pspnet", "deeplabv3", "deeplabv3plus", "bisenetv1", "unet"),
    "mmdet": ("mask_rcnn", "ms_rcnn", "solo", "solov2", "yolact", "gn", "scratch"),
}
# Their name of a metric in per cent -> ours, a share of 1.
METRICS = {
    "mIoU": "miou",
    "mIoU(ms+flip)": "miou_ms_flip",
    "mDice": "mean_dice",
    "Dice": "dice",
    "box AP": "box_ap",
    "mask AP": "mask_ap",
}


# --- their configs -----------------------------------------------------------------------------


class Wheel:
    """The files of one OpenMMLab package."""

    def __init__(self, path: str) -> None:
        self.zip = ZipFile(path)
        self.package = next(n.split("/")[0] for n in self.zip.namelist() if "/.mim/" in n)

    def read(self, path: str) -> str:
        """Text of one of the files that mim installs."""
        return self.zip.read(f"{self.package}/.mim/{path}").decode()

    def models(self, folder: str) -> list[Config]:
        """Rows of a metafile."""
        suffix = "yaml" if self.package == "mmseg" else "yml"
        return yaml.safe_load(self.read(f"configs/{folder}/metafile.{suffix}"))["Models"]

    def config(self, path: str) -> Config:
        """A config with its bases merged; the files are assignments of plain values."""
        text = self.read(path)
        names = re.search(r"^_base_\s*=\s*(\[.*?\]|'[^']*')", text, re.M | re.S)
        bases = ast.literal_eval(names[1]) if names else []
        merged: Config = {}
        for base in [bases] if isinstance(bases, str) else bases:
            merged = merge(merged, self.config(_join(PurePosixPath(path).parent, base)))
        plain = re.sub(r"\{\{\s*_base_\.(\w+)\s*\}\}", r"_base_['\1']", text)
        plain = re.sub(r"\b_base_\.(\w+)", r"_base_['\1']", plain)
        own: Config = {"_base_": merged}
        exec(plain.replace(names[0], "") if names else plain, {"dict": dict}, own)
        del own["_base_"]
        return merge(merged, own)

    def classes(self, dataset: str) -> list[str]:
        """Class names of a data set, from its METAINFO."""
        for name in self.zip.namelist():
            if name.startswith(f"{self.package}/datasets/") and name.endswith(".py"):
                for node in ast.walk(ast.parse(self.zip.read(name))):
                    if isinstance(node, ast.ClassDef) and node.name == dataset:
                        return _class_names(node)
        raise NotOursError(f"no class names of {dataset}")


def _class_names(node: ast.ClassDef) -> list[str]:
    for line in node.body:
        if isinstance(line, ast.Assign) and getattr(line.targets[0], "id", "") == "METAINFO":
            value = line.value
            pairs = (
                [(k.arg, k.value) for k in value.keywords]
                if isinstance(value, ast.Call)
                else [
                    (ast.literal_eval(k), v) for k, v in zip(value.keys, value.values, strict=True)
                ]
            )
            return list(ast.literal_eval(dict(pairs)["classes"]))
    raise NotOursError(f"no class names in {node.name}")


def _join(folder: PurePosixPath, relative: str) -> str:
    parts = list(folder.parts)
    for part in PurePosixPath(relative).parts:
        if part == "..":
            parts.pop()
        elif part != ".":
            parts.append(part)
    return "/".join(parts)


def merge(base: Any, own: Any) -> Any:
    """Values of `own` over those of `base`, deep, as mmengine merges."""
    if not (isinstance(base, dict) and isinstance(own, dict)) or own.get("_delete_"):
        return {k: v for k, v in own.items() if k != "_delete_"} if isinstance(own, dict) else own
    return {
        key: merge(base[key], own[key])
        if key in base and key in own
        else own.get(key, base.get(key))
        for key in {**base, **own}
    }


# --- what a config says, in our words ----------------------------------------------------------


def semantic_row(folder: str, config: Config) -> Config:
    """System, backbone and the settings that our converter cannot read from shapes."""
    model = config["model"]
    backbone, head = model["backbone"], model["decode_head"]
    if model["type"] != "EncoderDecoder":
        raise NotOursError(model["type"])
    make = {"bisenetv1": bisenet, "unet": unet}.get(folder, dilated)
    row = make(folder, backbone, head)
    row["settings"] = {k: v for k, v in row["settings"].items() if v != PUBLISHED.get(k, v)}
    if head.get("align_corners"):
        if row["system"] == "fcn":
            raise NotOursError("resizing with aligned corners, which our FCN lacks")
        row["settings"]["align_corners"] = True
    return row | {"classes": head["num_classes"], "input": input_spec(config)}


# What the converters assume of this origin; only other values are stored.
PUBLISHED = {
    "output_stride": 8,
    "multi_grid": (1, 1, 1),
    "aspp_rates": (12, 24, 36),
    "bins": (1, 2, 3, 6),
    "head_dilation": 1,
}
HEADS = {
    "FCNHead": "fcn",
    "PSPHead": "pspnet",
    "ASPPHead": "deeplabv3",
    "DepthwiseSeparableASPPHead": "deeplabv3plus",
}


def dilated(folder: str, backbone: Config, head: Config) -> Config:
    """A head on a dilated ResNet."""
    system = HEADS.get(head["type"])
    if system is None:
        raise NotOursError(head["type"])
    stride = 4 * prod(backbone["strides"])
    if tuple(backbone["dilations"]) != {8: (1, 1, 2, 4), 16: (1, 1, 1, 2), 32: (1,) * 4}[stride]:
        raise NotOursError(f"dilations {backbone['dilations']} at stride {stride}")
    settings: Config = {"output_stride": stride}
    if "multi_grid" in backbone:
        settings["multi_grid"] = tuple(backbone["multi_grid"])
    if system.startswith("deeplab"):
        settings["aspp_rates"] = tuple(head["dilations"][1:])
    if system == "pspnet":
        settings["bins"] = tuple(head["pool_scales"])
    if system == "fcn":
        settings["head_dilation"] = head.get("dilation", 1)
    if not backbone.get("contract_dilation") and stride < 32:
        raise NotOursError("dilation that is not contracted")
    return {"system": system, "backbone": resnet(backbone), "settings": settings}


def bisenet(folder: str, backbone: Config, head: Config) -> Config:
    """BiSeNet V1."""
    return {"system": "bisenet", "backbone": resnet(backbone["backbone_cfg"]), "settings": {}}


def unet(folder: str, backbone: Config, head: Config) -> Config:
    """The U-Net of mmseg with its plain head."""
    if head["type"] != "FCNHead":
        raise NotOursError(f"U-Net with {head['type']}")
    return {"system": "unet", "backbone": "s5_d16", "settings": {}}


def resnet(backbone: Config) -> str:
    """Our name of a ResNet, with the kind of its stem."""
    kinds = {"ResNet": "", "ResNetV1c": "_v1c", "ResNetV1d": "_v1d", "ResNeXt": ""}
    if backbone["type"] not in kinds or backbone.get("dcn") or backbone.get("plugins"):
        raise NotOursError(f"backbone {backbone['type']}" + " with DCN" * bool(backbone.get("dcn")))
    if backbone["type"] == "ResNeXt":
        return f"resnext{backbone['depth']}_{backbone['groups']}x{backbone['base_width']}d"
    return f"resnet{backbone['depth']}{kinds[backbone['type']]}"


def instance_row(folder: str, config: Config) -> Config:
    """The same for mmdet."""
    model = config["model"]
    systems = {
        "MaskRCNN": "mask_rcnn",
        "MaskScoringRCNN": "mask_scoring_rcnn",
        "SOLO": "solo",
        "SOLOv2": "solo",
        "YOLACT": "yolact",
    }
    if model["type"] not in systems:
        raise NotOursError(model["type"])
    system = systems[model["type"]]
    head = model["mask_head"] if system == "solo" else model.get("bbox_head") or model["roi_head"]
    if head.get("dcn_cfg") or head.get("mask_feature_head", {}).get("dcn_cfg"):
        raise NotOursError("head with DCN")
    settings: Config = {}
    if system.endswith("rcnn"):
        check_rcnn(model)
        # The converters of Mask R-CNN with a pyramid cannot tell where a bottleneck strides.
        if system == "mask_rcnn" and model["backbone"]["style"] == "caffe":
            settings["backbone_style"] = "caffe"
    forms = {
        "DecoupledSOLOHead": "decoupled_solo",
        "DecoupledSOLOLightHead": "decoupled_solo_light",
        "SOLOV2Head": "solov2" if head.get("stacked_convs") == 4 else "solov2_light",
    }
    name = forms.get(head["type"], system)
    with_group = model["backbone"].get("norm_cfg", {}).get("type") == "GN"
    neck = "" if system == "yolact" else "_fpn"
    classes = head.get("num_classes") or head["bbox_head"]["num_classes"]
    return {
        "system": system,
        "name": name,
        "backbone": resnet(model["backbone"]) + neck + "_gn" * with_group,
        "settings": settings,
        "classes": classes,
        "input": input_spec(config),
    }


def check_rcnn(model: Config) -> None:
    """Everything about detection that our converter takes for granted."""
    test = model["test_cfg"]
    expected = {"nms_pre": 1000, "max_per_img": 1000, "min_bbox_size": 0}
    found = {key: test["rpn"][key] for key in expected}
    rcnn = test["rcnn"]
    if found != expected or (rcnn["score_thr"], rcnn["max_per_img"]) != (0.05, 100):
        raise NotOursError(f"other settings of detection: {test}")


def input_spec(config: Config) -> Config:
    """How a picture is fed, from the preprocessor and the test pipeline."""
    pre = config["model"]["data_preprocessor"]
    resize: Config = {"antialias": False, "pad_divisor": pre.get("pad_size_divisor", 1)}
    pipeline = config["test_dataloader"]["dataset"]["pipeline"]
    step = next((s for s in pipeline if s["type"] == "Resize"), None)
    if step is not None and step.get("keep_ratio"):
        resize |= {"short_side": min(step["scale"]), "long_side": max(step["scale"])}
    elif step is not None:
        width, height = step["scale"]
        resize |= {"fixed": [height, width]}
    return {
        "mean": pre["mean"],
        "std": pre["std"],
        "scale": 1.0,
        "channel_order": "rgb" if pre.get("bgr_to_rgb") else "bgr",
        "resize": resize,
    }


# --- rows --------------------------------------------------------------------------------------

# Where a metafile names another config than the one that its checkpoint's address tells of.
CORRECTED = {
    "deeplabv3plus_r101-d8_512x512_80k_ade20k": "deeplabv3plus_r101-d8_4xb4-80k_ade20k-512x512",
    "deeplabv3plus_r101-d16-mg124_512x1024_40k_cityscapes": (
        "deeplabv3plus_r101-d16-mg124_4xb2-40k_cityscapes-512x1024"
    ),
    "bisenetv1_r101-d32_lr5e-3_4x4_512x512_160k_coco-stuff164k": (
        "bisenetv1_r101-d32_4xb4-160k_coco-stuff164k-512x512"
    ),
}
DATA = {
    "cityscapes": "cityscapes",
    "ade20k": "ade20k",
    "voc12aug": "voc12aug",
    "pascal-context": "pascal_context",
    "pascal-context-59": "pascal_context_59",
    "coco-stuff10k": "coco_stuff_10k",
    "coco-stuff164k": "coco_stuff_164k",
    "coco": "coco",
    "loveda": "loveda",
    "potsdam": "potsdam",
    "vaihingen": "vaihingen",
    "isaid": "isaid",
    "drive": "drive",
    "stare": "stare",
    "chase-db1": "chase_db1",
    "hrf": "hrf",
    "mapillay_v1_65": "mapillary_v1",
}


def tag(origin: str, config_name: str) -> tuple[str, str]:
    """What follows the dot in our name, and the data set, from the name of a config."""
    data = max((d for d in DATA if d in config_name), key=len, default="")
    if not data:
        raise NotOursError(f"data set of {config_name}")
    parts = [origin, DATA[data]]
    for pattern in (
        r"\d+x\d+$",
        r"(?<=[-_])(\d+k)(?=_)",
        r"(?<=[-_])(\dx)(?=_)",
        r"ms-poly|mstrain-poly|(?<=_)ms(?=-)",
        r"amp|fp16",
        r"rsb",
        r"d16",
        r"mg124",
        r"in1k-pre",
        r"4xb8",
        r"dice-3\.0",
        r"contrib",
        r"caffe",
        r"scratch",
        r"\dx8(?=_coco)|8xb8",
    ):
        if found := re.search(pattern, config_name.replace("s5-d16", "s5")):
            word = found[0].replace("mstrain", "ms").replace("-", "_").replace("dice_3.0", "dice")
            parts.append(word)
    return "_".join(parts), DATA[data]


def row(origin: str, folder: str, model: Config, wheel: Wheel) -> tuple[Config, Config]:
    """One row of ours, and the classes of its data set by our name of it."""
    path = config_path(model)
    config = wheel.config(path)
    found = (semantic_row if origin == "mmseg" else instance_row)(folder, config)
    suffix, data = tag(origin, PurePosixPath(path).stem)
    classes = wheel.classes(_dataset_type(config))
    if len(classes) != found["classes"]:
        raise NotOursError(f"{len(classes)} class names for {found['classes']} classes")
    digits = re.search(r"[-_]([0-9a-f]{8})\.pth$", model["Weights"])
    entry: Config = {
        "name": f"{found.get('name', found['system'])}_{found['backbone']}.{suffix}",
        "system": found["system"],
        "data": data,
        "source": model["Weights"],
        **({"sha256": digits[1]} if digits else {}),
        "metrics": reported(model["Results"]),
        "listed_in": f"{ABOUT[origin]['listed_in'].split(',')[0]}, {path}",
        **({"config": found["settings"]} if found["settings"] else {}),
        "input": found["input"],
    }
    return entry, {data: classes}


def config_path(model: Config) -> str:
    """The config of a checkpoint, which must agree with its address about depth and schedule."""
    path = PurePosixPath(model["Config"])
    run = PurePosixPath(model["Weights"]).parent.name
    path = path.with_stem(CORRECTED.get(run, path.stem))
    for what in (r"[_-][rx]\d+b?(?=[-_])", r"\d+k(?=[_-])", r"(?<=_)\dx(?=_coco)"):
        here, there = (re.search(what, f"{name}_") for name in (path.stem, run))
        if here and there and here[0].strip("-_") != there[0].strip("-_"):
            raise NotOursError(f"config {path.stem} for the weights of {run}")
    return str(path)


def _dataset_type(config: Config) -> str:
    dataset = config["test_dataloader"]["dataset"]
    return dataset.get("type") or dataset["dataset"]["type"]


def reported(results: Config | list[Config]) -> dict[str, float]:
    """Their metrics as shares of 1 under our names."""
    found: dict[str, float] = {}
    for result in results if isinstance(results, list) else [results]:
        for name, value in result["Metrics"].items():
            if name in METRICS and isinstance(value, int | float):
                found[METRICS[name]] = round(value / 100, 4)
    return found


def main(paths: list[str]) -> None:
    """Write the file of each wheel."""
    for path in paths:
        wheel = Wheel(path)
        origin = "mmseg" if wheel.package == "mmseg" else "mmdet"
        rows: list[Config] = []
        seen: set[str] = set()
        datasets: dict[str, list[str]] = {}
        for folder in FOLDERS[origin]:
            for model in wheel.models(folder):
                try:
                    entry, classes = row(origin, folder, model, wheel)
                except NotOursError as reason:
                    print(f"left out {model['Name']}: {reason}", file=sys.stderr)
                    continue
                if entry["source"] not in seen:  # some are listed twice
                    seen.add(entry["source"])
                    rows.append(entry)
                    datasets.update(classes)
        add_datasets(datasets)
        write_origin(ABOUT[origin], rows)
        print(Counter(r["system"] for r in rows))


if __name__ == "__main__":
    main(sys.argv[1:])
