"""Mask R-CNN R50-FPN beside torchvision's, same weights, in one run.

    python benchmarks/instance.py [--rounds 5] [--size 480x640] [--short-side 800] [--threads 1]

End to end: a picture as an array goes in, run lengths come out. Training: one step on two annotated
pictures, from their pixels and masks to the gradients; stem and layer1 stand still, as torchvision
trains its own. Each side prepares pictures, boxes and masks by its own code, and torchvision's
masks are dense already.

Both networks carry the same random weights, arranged so that activations keep their size, scores
differ and detections are four times as long as their anchors: about 700 candidates pass the
published threshold of 0.05, and every picture has its 100 detections. They must agree before
anything is timed.

Times are seconds of processor time of this process. The two take turns; the ratio is the median
over rounds of theirs / ours, above 1 where ours is faster, with its quartiles. To keep the
allocator's moods out of it, both run in one process in which memory once taken is kept:

    MALLOC_MMAP_THRESHOLD_=4294967296 MALLOC_TRIM_THRESHOLD_=8589934592 MALLOC_TOP_PAD_=268435456

Memory is the peak of a process that does nothing but one run of one side, without these settings.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # a thread that waits takes no processor time

import argparse
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from pycocotools import mask as coco
from torch import Tensor, nn
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

import pixelwise as pw
from pixelwise.convert import import_checkpoint
from pixelwise.data.sample import Instances, Sample
from pixelwise.data.transforms import EvalTransform
from pixelwise.ops import rle
from pixelwise.predict import Segmenter
from pixelwise.types import ImageSize, Size

K = 80
UNPADDED = (500, 660)  # becomes 800 x 1056, which 32 divides
SIDES = ("torchvision", "ours")


def torchvision_net(short_side: int) -> MaskRCNN:
    torch.manual_seed(0)
    body = resnet_fpn_backbone(backbone_name="resnet50", weights=None, trainable_layers=3)
    for name, buffer in body.named_buffers():
        if name.endswith("bn3.weight"):
            buffer.fill_(0.2)
    longest = short_side * 1333 // 800
    net = MaskRCNN(body, num_classes=K + 1, min_size=short_side, max_size=longest)
    with torch.no_grad():  # scores that differ: rounding must not decide which regions are best
        net.rpn.head.cls_logits.weight *= 30
        net.roi_heads.box_predictor.cls_score.weight *= 36
        net.roi_heads.box_predictor.bbox_pred.bias.view(-1, 4)[:, 2:] = 5 * math.log(4)
    return net


def our_segmenter(short_side: int) -> Segmenter:
    imported = import_checkpoint(
        torchvision_net(short_side).state_dict(), origin="torchvision", name="mask_rcnn"
    )
    longest = short_side * 1333 // 800
    rule = replace(imported.input.resize, short_side=short_side, long_side=longest)
    return Segmenter(
        imported.system,
        name="mask_rcnn",
        classes=[f"class {i}" for i in range(K)],
        input=replace(imported.input, resize=rule),
        task="instance",
        device="cpu",
    )


def picture(size: Size) -> np.ndarray:
    """[H, W, 3] uint8: smooth noise, so that regions differ."""
    g = torch.Generator().manual_seed(1)
    coarse = torch.rand(1, 3, size[0] // 16, size[1] // 16, generator=g)
    fine = nn.functional.interpolate(coarse, size=size, mode="bilinear")[0]
    return (255 * fine).byte().permute(1, 2, 0).numpy()


def to_float(pixels: np.ndarray) -> Tensor:
    """[3, H, W] in [0, 1], as torchvision wants pictures."""
    return torch.from_numpy(pixels).permute(2, 0, 1).float().div(255)


def predict_torchvision(pixels: np.ndarray, args: argparse.Namespace) -> Callable[[], list[dict]]:
    net = torchvision_net(args.short_side).eval()

    @torch.no_grad()
    def predict() -> list[dict]:
        (found,) = net([to_float(pixels)])
        masks = (found["masks"][:, 0] > 0.5).numpy().astype(np.uint8)
        return coco.encode(np.asfortranarray(masks.transpose(1, 2, 0)))

    return predict


def predict_ours(pixels: np.ndarray, args: argparse.Namespace) -> Callable[[], list[dict]]:
    segmenter = our_segmenter(args.short_side)

    def predict() -> list[dict]:
        result = segmenter.predict(pixels, score_thresh=0.0)
        return rle.to_coco(result.instances.masks)

    return predict


def objects(count: int, size: Size) -> tuple[Tensor, Tensor]:
    """Boxes [N, 4] on whole pixels, and labels [N]; the masks are ellipses in them."""
    g = torch.Generator().manual_seed(2)
    limit = torch.tensor([size[1], size[0]])
    extent = (torch.rand(count, 2, generator=g) * 0.4 + 0.05) * limit
    corner = torch.rand(count, 2, generator=g) * (limit - extent)
    boxes = torch.cat([corner, corner + extent], 1).round()
    return boxes, torch.randint(0, K, (count,), generator=g)


def ellipses(boxes: Tensor, size: Size) -> Tensor:
    """[N, H, W] uint8."""
    centre, radius = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2]) / 2
    y = (torch.arange(size[0]) + 0.5 - centre[:, 1:]) / radius[:, 1:]  # [N, H]
    x = (torch.arange(size[1]) + 0.5 - centre[:, :1]) / radius[:, :1]  # [N, W]
    return (y[:, :, None] ** 2 + x[:, None] ** 2 <= 1).to(torch.uint8)


def step_torchvision(pixels: np.ndarray, args: argparse.Namespace) -> Callable[[], float]:
    net = torchvision_net(args.short_side).train()
    size = pixels.shape[:2]
    boxes, labels = objects(args.objects, size)
    target = {"boxes": boxes, "labels": labels + 1, "masks": ellipses(boxes, size)}

    def step() -> float:
        net.zero_grad()
        images = [to_float(pixels), to_float(pixels)]
        losses = net(images, [dict(target), dict(target)])
        total = torch.stack(list(losses.values())).sum()
        total.backward()
        return float(total.detach())

    return step


def step_ours(pixels: np.ndarray, args: argparse.Namespace) -> Callable[[], float]:
    segmenter = our_segmenter(args.short_side)
    system = segmenter.system.train()
    system.backbone.freeze(2)  # stem and layer1, as torchvision's
    size = pixels.shape[:2]
    boxes, labels = objects(args.objects, size)
    instances = Instances(
        masks=rle.encode(ellipses(boxes, size)),
        labels=labels.numpy(),
        boxes=boxes.numpy(),
        crowd=np.zeros(args.objects, np.bool_),
        ids=np.arange(args.objects),
    )
    sample = Sample(image=pixels, path=Path("none"), index=0, instances=instances)
    transform = EvalTransform(segmenter.input, "instance")

    def step() -> float:
        system.zero_grad()
        prepared = [transform(sample), transform(sample)]
        images, targets = torch.stack([p.image for p in prepared]), [p.target for p in prepared]
        total = torch.stack(list(system.loss(images, targets).values())).sum()
        total.backward()
        return float(total.detach())

    return step


def make_work(side: str, what: str, args: argparse.Namespace) -> Callable[[], object]:
    height, width = (int(part) for part in args.size.split("x"))
    pixels = picture((height, width))
    makers = {
        "predict": {"ours": predict_ours, "torchvision": predict_torchvision},
        "train": {"ours": step_ours, "torchvision": step_torchvision},
    }
    return makers[what][side](pixels, args)


@torch.no_grad()
def check_agreement() -> None:
    """The same masks from the same tensor, where nothing is padded (torchvision clips to that)."""
    pixels = picture(UNPADDED)
    net, system = torchvision_net(800).eval(), our_segmenter(800).system
    images, _ = net.transform([to_float(pixels)])
    size = tuple(images.tensors.shape[-2:])
    (found,) = net([to_float(pixels)])
    sizes = ImageSize(original=UNPADDED, content=size, input=size)
    (ours,) = system.decode(system(images.tensors), [sizes])
    theirs = rle.encode((found["masks"][:, 0] > 0.5).to(torch.uint8))
    assert torch.equal(ours.labels, found["labels"] - 1)
    assert torch.allclose(ours.scores, found["scores"], atol=1e-6)
    assert torch.allclose(ours.boxes, found["boxes"], atol=1e-2)
    codes = [[m["counts"] for m in rle.to_coco(masks)] for masks in (ours.masks, theirs)]
    same = [a == b for a, b in zip(*codes, strict=True)]
    print(f"{len(same)} detections agree; {sum(same)} of their masks to the last pixel")
    assert sum(same) > 0.9 * len(same)


def in_turns(works: dict[str, Callable], rounds: int) -> dict[str, list[float]]:
    """Processor time of each side in each round, after one run to warm up."""
    times: dict[str, list[float]] = {side: [] for side in works}
    for i in range(rounds + 1):
        for side in SIDES if i % 2 else SIDES[::-1]:  # neither is always the first
            start = time.process_time()
            works[side]()
            if i:
                times[side].append(time.process_time() - start)
    return times


def print_times(what: str, times: dict[str, list[float]]) -> None:
    ratios = [a / b for a, b in zip(times["torchvision"], times["ours"], strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
    theirs, ours = (statistics.median(times[side]) for side in SIDES)
    print(
        f"{what:<12}{theirs:>12.2f} s{ours:>12.2f} s{middle:>9.3f}  {low:.3f} to {high:.3f}",
        flush=True,
    )


def print_peak(side: str, what: str, args: argparse.Namespace) -> None:
    """In a process of its own: the peak of this program (since exec) with one run."""
    make_work(side, what, args)()
    status = Path("/proc/self/status").read_text()
    print(int(status.split("VmHWM:")[1].split()[0]) / 1024)


def peak_mb(side: str, what: str, args: argparse.Namespace) -> float:
    command = [sys.executable, __file__, "--size", args.size, "--threads", str(args.threads)]
    command += ["--objects", str(args.objects), "--short-side", str(args.short_side)]
    command += ["--peak", side, what]
    plain = {key: value for key, value in os.environ.items() if not key.startswith("MALLOC_")}
    out = subprocess.run(command, stdout=subprocess.PIPE, check=True, env=plain)
    return float(out.stdout.split()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--size", default="480x640", help="height x width of the picture")
    parser.add_argument("--short-side", type=int, default=800, help="of the network input")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--objects", type=int, default=15, help="per picture, while training")
    parser.add_argument("--unchecked", action="store_true", help="leave the agreement out")
    parser.add_argument("--only", choices=("predict", "train"))
    parser.add_argument("--peak", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.peak:
        print_peak(*args.peak, args)
        return
    print(f"pixelwise {pw.__version__}, torch {torch.__version__}, {args.threads} thread(s)")
    if not args.unchecked:
        check_agreement()
    for what in (args.only,) if args.only else ("predict", "train"):
        works = {side: make_work(side, what, args) for side in SIDES}
        print(f"{'':<12}{'torchvision':>14}{'ours':>14}{'ratio':>9}  quartiles")
        print_times(what, in_turns(works, args.rounds))
        works.clear()
        theirs, ours = (peak_mb(side, what, args) for side in SIDES)
        print(f"{'  peak':<12}{theirs:>11.0f} MB{ours:>11.0f} MB{theirs / ours:>9.3f}", flush=True)


if __name__ == "__main__":
    main()
