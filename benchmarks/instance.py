"""Mask R-CNN R50-FPN beside torchvision's, same weights, in one run.

    python benchmarks/instance.py [--repeat 5] [--size 480x640] [--threads 2]

End to end: a picture as an array goes in, run lengths come out. Training: one step of two pictures,
loss and gradients. Both networks carry torchvision's initial weights (seed 0, ImageNet weights of
nobody), so scores are noise, the score threshold is 0 and every picture has its 100 detections: the
heaviest case. Times are seconds of processor time of this process; the two take turns, and the
median of the repeats is printed. A ratio above 1 says how many times faster ours is.

Memory is the growth of the process' peak during a few runs, each measured in a process of its own.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np
import torch
from pycocotools import mask as coco
from torch import Tensor, nn
from torchvision.models.detection import maskrcnn_resnet50_fpn

import pixelwise as pw
from pixelwise.convert import import_checkpoint
from pixelwise.ops import rle
from pixelwise.predict import Segmenter
from pixelwise.types import InstanceTarget, MaskCrops, Size

K = 80
OBJECTS = 15


def torchvision_net() -> nn.Module:
    torch.manual_seed(0)
    return maskrcnn_resnet50_fpn(
        weights=None,
        weights_backbone=None,
        num_classes=K + 1,
        box_score_thresh=0.0,
        trainable_backbone_layers=3,
    )


def our_segmenter() -> Segmenter:
    imported = import_checkpoint(
        torchvision_net().state_dict(), origin="torchvision", name="mask_rcnn", score_thresh=0.0
    )
    return Segmenter(
        imported.system,
        name="mask_rcnn",
        classes=[f"class {i}" for i in range(K)],
        input=imported.input,
        task="instance",
        device="cpu",
    )


def picture(size: Size) -> np.ndarray:
    """[H, W, 3] uint8: smooth noise, so that regions differ."""
    g = torch.Generator().manual_seed(1)
    coarse = torch.rand(1, 3, size[0] // 16, size[1] // 16, generator=g)
    fine = nn.functional.interpolate(coarse, size=size, mode="bilinear")[0]
    return (255 * fine).byte().permute(1, 2, 0).numpy()


def predict_torchvision(net: nn.Module) -> Callable[[np.ndarray], list[dict]]:
    net = net.eval()

    @torch.no_grad()
    def predict(pixels: np.ndarray) -> list[dict]:
        image = torch.from_numpy(pixels).permute(2, 0, 1).float().div(255)
        (found,) = net([image])
        masks = (found["masks"][:, 0] > 0.5).numpy().astype(np.uint8)
        return coco.encode(np.asfortranarray(masks.transpose(1, 2, 0)))

    return predict


def predict_ours(segmenter: Segmenter) -> Callable[[np.ndarray], list[dict]]:
    def predict(pixels: np.ndarray) -> list[dict]:
        result = segmenter.predict(pixels, score_thresh=0.0)
        return rle.to_coco(result.instances.masks)

    return predict


def objects(size: Size) -> tuple[Tensor, Tensor]:
    """Boxes [N, 4] on whole pixels, and labels [N]."""
    g = torch.Generator().manual_seed(2)
    limit = torch.tensor([size[1], size[0]])
    extent = (torch.rand(OBJECTS, 2, generator=g) * 0.4 + 0.05) * limit
    corner = torch.rand(OBJECTS, 2, generator=g) * (limit - extent)
    boxes = torch.cat([corner, corner + extent], 1).round()
    return boxes, torch.randint(0, K, (OBJECTS,), generator=g)


def step_torchvision(net: nn.Module, size: Size) -> Callable[[], float]:
    net = net.train()
    boxes, labels = objects(size)
    masks = torch.zeros(OBJECTS, *size, dtype=torch.uint8)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes.int().tolist(), strict=True):
        mask[y1:y2, x1:x2] = 1
    target = {"boxes": boxes, "labels": labels + 1, "masks": masks}
    image = torch.from_numpy(picture(size)).permute(2, 0, 1).float().div(255)

    def step() -> float:
        net.zero_grad()
        losses = net([image, image], [dict(target), dict(target)])
        total = torch.stack(list(losses.values())).sum()
        total.backward()
        return float(total)

    return step


def step_ours(segmenter: Segmenter, size: Size) -> Callable[[], float]:
    from pixelwise.data.transforms import prepare_image

    system = segmenter.system.train()
    for name, parameter in system.named_parameters():  # as torchvision: stem and layer1 stand
        parameter.requires_grad_(not name.startswith(("backbone.stem", "backbone.layer1")))
    image, sizes = prepare_image(picture(size), segmenter.input)
    boxes, labels = objects(size)
    scale = torch.tensor([sizes.content[1] / size[1], sizes.content[0] / size[0]]).repeat(2)
    windows = (boxes * scale).round().long()
    empty = MaskCrops(sizes.input, windows, torch.zeros(0, dtype=torch.uint8))
    pixels = torch.ones(int(empty.areas_of_windows.sum()), dtype=torch.uint8)
    target = InstanceTarget(
        boxes=windows.float(),
        labels=labels,
        masks=MaskCrops(sizes.input, windows, pixels),
        crowd=torch.zeros(OBJECTS, dtype=torch.bool),
    )
    images = torch.stack([image, image])

    def step() -> float:
        system.zero_grad()
        total = torch.stack(list(system.loss(images, [target, target]).values())).sum()
        total.backward()
        return float(total)

    return step


def in_turns(ours: Callable, theirs: Callable, repeat: int) -> tuple[float, float]:
    """Median processor time of each, after one run to warm up."""
    times: tuple[list[float], list[float]] = ([], [])
    for i in range(repeat + 1):
        for work, spent in zip((ours, theirs), times, strict=True):
            start = time.process_time()
            work()
            if i:
                spent.append(time.process_time() - start)
    return statistics.median(times[0]), statistics.median(times[1])


def works(who: str, what: str, size: Size) -> Callable[[], object]:
    pixels = picture(size)
    if what == "predict":
        make = (
            predict_ours(our_segmenter())
            if who == "ours"
            else predict_torchvision(torchvision_net())
        )
        return lambda: make(pixels)
    return (
        step_ours(our_segmenter(), size)
        if who == "ours"
        else step_torchvision(torchvision_net(), size)
    )


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def print_growth(who: str, what: str, size: Size) -> None:
    """In a process of its own: what two runs add to the peak that loading leaves."""
    work = works(who, what, size)
    before = peak_mb()
    for _ in range(2):
        work()
    print(peak_mb() - before)


def growth(who: str, what: str, args: argparse.Namespace) -> float:
    command = [sys.executable, __file__, "--size", args.size, "--threads", str(args.threads)]
    out = subprocess.run([*command, "--growth", who, what], capture_output=True, check=True)
    return float(out.stdout.split()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--size", default="480x640", help="height x width of the picture")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--growth", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    height, width = (int(part) for part in args.size.split("x"))
    if args.growth:
        print_growth(*args.growth, (height, width))
        return
    print(f"pixelwise {pw.__version__}, torch {torch.__version__}, {args.threads} threads")
    print(f"{'':<12}{'torchvision':>14}{'ours':>14}{'ratio':>8}")
    for what in ("predict", "train"):
        theirs_work, our_work = (
            works(who, what, (height, width)) for who in ("torchvision", "ours")
        )
        ours, theirs = in_turns(our_work, theirs_work, args.repeat)
        print(f"{what:<12}{theirs:>12.2f} s{ours:>12.2f} s{theirs / ours:>8.2f}", flush=True)
        mine, other = growth("ours", what, args), growth("torchvision", what, args)
        print(f"{'  memory':<12}{other:>11.0f} MB{mine:>11.0f} MB{other / mine:>8.2f}", flush=True)


if __name__ == "__main__":
    main()
