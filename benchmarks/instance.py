"""Mask R-CNN R50-FPN beside torchvision's, same weights, in one run.

    python benchmarks/instance.py [--rounds 5] [--size 480x640] [--short-side 800] [--threads 1]
        [--device cpu] [--precision fp32]

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

On a GPU (`--device cuda`) times are by the clock, and what goes in and comes out lies in the memory
of the computer: torchvision's picture travels as bytes, and its masks come back as bytes in the
order in which pycocotools reads them. A third line is the training step of samples that workers
have prepared; torchvision's own preparation runs on the GPU and stays in it. Memory is the peak of
the GPU's tensors in one run, those that were there before the side was made not counted.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # a thread that waits takes no processor time

import argparse
import math
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from devices import (
    WARM_UP,
    add_options,
    allocated,
    autocast,
    describe,
    now,
    use_tf32,
    warm_libraries,
)
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
from pixelwise.types import ImageSize, InstancePrediction, Size

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


def our_segmenter(short_side: int, device: torch.device) -> Segmenter:
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
        device=device,
    )


def picture(size: Size) -> np.ndarray:
    """[H, W, 3] uint8: smooth noise, so that regions differ."""
    g = torch.Generator().manual_seed(1)
    coarse = torch.rand(1, 3, size[0] // 16, size[1] // 16, generator=g)
    fine = nn.functional.interpolate(coarse, size=size, mode="bilinear")[0]
    return (255 * fine).byte().permute(1, 2, 0).numpy()


def to_float(pixels: np.ndarray, device: torch.device) -> Tensor:
    """[3, H, W] in [0, 1], as torchvision wants pictures."""
    return torch.from_numpy(pixels).to(device).permute(2, 0, 1).float().div(255)


def to_coco(masks: Tensor) -> list[dict]:
    """Bool masks [N, H, W] by pycocotools, which reads columns: a GPU can turn them round."""
    if masks.device.type == "cpu":
        return coco.encode(np.asfortranarray(masks.numpy().astype(np.uint8).transpose(1, 2, 0)))
    columns = masks.to(torch.uint8).transpose(1, 2).contiguous()  # [N, W, H]
    return coco.encode(columns.cpu().numpy().transpose(2, 1, 0))


def predict_torchvision(
    pixels: np.ndarray, args: argparse.Namespace, precision: str
) -> Callable[[], list[dict]]:
    net = torchvision_net(args.short_side).eval().to(args.device)

    @torch.no_grad()
    def predict() -> list[dict]:
        with autocast(args.device, precision):
            (found,) = net([to_float(pixels, args.device)])
        return to_coco(found["masks"][:, 0] > 0.5)

    return predict


def predict_ours(
    pixels: np.ndarray, args: argparse.Namespace, precision: str
) -> Callable[[], list[dict]]:
    segmenter = our_segmenter(args.short_side, args.device)

    def predict() -> list[dict]:
        with autocast(args.device, precision):
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


def step_torchvision(
    pixels: np.ndarray, args: argparse.Namespace, precision: str
) -> Callable[[], float]:
    net = torchvision_net(args.short_side).train().to(args.device)
    size = pixels.shape[:2]
    boxes, labels = objects(args.objects, size)
    target = {"boxes": boxes, "labels": labels + 1, "masks": ellipses(boxes, size)}

    def step() -> float:
        net.zero_grad()
        images = [to_float(pixels, args.device) for _ in range(2)]
        targets = [{key: x.to(args.device) for key, x in target.items()} for _ in range(2)]
        with autocast(args.device, precision):
            losses = net(images, targets)
        total = torch.stack(list(losses.values())).sum()
        total.backward()
        return float(total.detach())

    return step


def step_ours(
    pixels: np.ndarray, args: argparse.Namespace, precision: str, *, is_loaded: bool = False
) -> Callable[[], float]:
    segmenter = our_segmenter(args.short_side, args.device)
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
    loaded = [transform(sample), transform(sample)] if is_loaded else None

    def step() -> float:
        system.zero_grad()
        prepared = loaded or [transform(sample), transform(sample)]
        images = torch.stack([p.image for p in prepared]).to(args.device)
        targets = [p.target.to(args.device) for p in prepared]
        with autocast(args.device, precision):
            losses = system.loss(images, targets)
        total = torch.stack(list(losses.values())).sum()
        total.backward()
        return float(total.detach())

    return step


def make_work(
    side: str, what: str, args: argparse.Namespace, precision: str
) -> Callable[[], object]:
    height, width = (int(part) for part in args.size.split("x"))
    pixels = picture((height, width))
    makers = {
        "predict": {"ours": predict_ours, "torchvision": predict_torchvision},
        "train": {"ours": step_ours, "torchvision": step_torchvision},
        "loaded": {"ours": partial(step_ours, is_loaded=True), "torchvision": step_torchvision},
    }
    return makers[what][side](pixels, args, precision)


@torch.no_grad()
def check_agreement(device: torch.device) -> None:
    """The same masks from the same tensor, where nothing is padded (torchvision clips to that)."""
    pixels = picture(UNPADDED)
    net, system = torchvision_net(800).eval().to(device), our_segmenter(800, device).system
    images, _ = net.transform([to_float(pixels, device)])
    size = tuple(images.tensors.shape[-2:])
    (found,) = net([to_float(pixels, device)])
    sizes = ImageSize(original=UNPADDED, content=size, input=size)
    (ours,) = system.decode(system(images.tensors), [sizes])
    if device.type != "cpu":
        check_nearly({key: value.cpu() for key, value in found.items()}, ours)
        return
    theirs = rle.encode((found["masks"][:, 0] > 0.5).to(torch.uint8))
    assert torch.equal(ours.labels, found["labels"] - 1)
    assert torch.allclose(ours.scores, found["scores"], atol=1e-6)
    assert torch.allclose(ours.boxes, found["boxes"], atol=1e-2)
    codes = [[m["counts"] for m in rle.to_coco(masks)] for masks in (ours.masks, theirs)]
    same = [a == b for a, b in zip(*codes, strict=True)]
    print(f"{len(same)} detections agree; {sum(same)} of their masks to the last pixel")
    assert sum(same) > 0.9 * len(same)


def check_nearly(found: dict[str, Tensor], ours: InstancePrediction) -> None:
    """The same, where kernels may add in another order: pairs of detections in any order."""
    same = ours.labels[:, None] == found["labels"] - 1  # [ours, theirs]
    same &= (ours.scores[:, None] - found["scores"]).abs() < 1e-4
    same &= (ours.boxes[:, None] - found["boxes"]).abs().amax(dim=2) < 0.1
    a, b = same.nonzero(as_tuple=True)
    dense = torch.from_numpy(rle.decode(ours.masks)).bool()[a], found["masks"][b, 0] > 0.5
    shared, union = ((x.sum(dim=(1, 2))) for x in (dense[0] & dense[1], dense[0] | dense[1]))
    iou = shared / union.clamp(min=1)
    print(
        f"{len(a)} of {len(same)} and {same.shape[1]} detections agree; {int((iou == 1).sum())} of "
        f"their masks to the last pixel, lowest IoU {float(iou.min()):.4f}"
    )
    assert len(a) >= 0.95 * max(same.shape)
    assert iou.min() > 0.98


def in_turns(
    works: dict[str, Callable], rounds: int, device: torch.device
) -> dict[str, list[float]]:
    """Time of each side in each round, after untimed ones."""
    times: dict[str, list[float]] = {side: [] for side in works}
    warm_up = WARM_UP[device.type]
    for i in range(rounds + warm_up):
        for side in SIDES if i % 2 else SIDES[::-1]:  # neither is always the first
            start = now(device)
            works[side]()
            if i >= warm_up:
                times[side].append(now(device) - start)
    return times


def print_times(what: str, times: dict[str, list[float]], device: torch.device) -> None:
    ratios = [a / b for a, b in zip(times["torchvision"], times["ours"], strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
    theirs, ours = (statistics.median(times[side]) for side in SIDES)
    unit, factor = ("s", 1) if device.type == "cpu" else ("ms", 1000)
    print(
        f"{what:<12}{factor * theirs:>12.2f} {unit}{factor * ours:>12.2f} {unit}{middle:>9.3f}  "
        f"{low:.3f} to {high:.3f}",
        flush=True,
    )


def print_peak(side: str, what: str, args: argparse.Namespace) -> None:
    """In a process of its own: the peak of this program (since exec) with one run."""
    make_work(side, what, args, *args.precision)()
    status = Path("/proc/self/status").read_text()
    print(int(status.split("VmHWM:")[1].split()[0]) / 1024)


def peak_mb(side: str, what: str, args: argparse.Namespace, precision: str) -> float:
    command = [sys.executable, __file__, "--size", args.size, "--threads", str(args.threads)]
    command += ["--objects", str(args.objects), "--short-side", str(args.short_side)]
    command += ["--precision", precision, "--peak", side, what]
    plain = {key: value for key, value in os.environ.items() if not key.startswith("MALLOC_")}
    out = subprocess.run(command, stdout=subprocess.PIPE, check=True, env=plain)
    return float(out.stdout.split()[-1])


def peak_on_gpu_mb(work: Callable[[], object], before: int, device: torch.device) -> float:
    """Of a run that is not the first, above the bytes that were allocated before it was made."""
    work()
    allocated(device)
    work()
    torch.cuda.synchronize(device)
    return (torch.cuda.max_memory_allocated(device) - before) / 2**20


def compare(what: str, args: argparse.Namespace, precision: str) -> None:
    use_tf32(precision)
    works, peaks = {}, {}
    for side in SIDES:
        before = 0 if args.device.type == "cpu" else allocated(args.device)
        works[side] = make_work(side, what, args, precision)
        if args.device.type != "cpu":
            peaks[side] = peak_on_gpu_mb(works[side], before, args.device)
    is_plain = args.device.type == "cpu" and precision == "fp32"
    print(
        f"{'' if is_plain else precision:<12}{'torchvision':>14}{'ours':>14}{'ratio':>9}  quartiles"
    )
    print_times(what, in_turns(works, args.rounds, args.device), args.device)
    works.clear()
    if args.device.type == "cpu":
        peaks = {side: peak_mb(side, what, args, precision) for side in SIDES}
    theirs, ours = (peaks[side] for side in SIDES)
    print(f"{'  peak':<12}{theirs:>11.0f} MB{ours:>11.0f} MB{theirs / ours:>9.3f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--size", default="480x640", help="height x width of the picture")
    parser.add_argument("--short-side", type=int, default=800, help="of the network input")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--objects", type=int, default=15, help="per picture, while training")
    parser.add_argument("--unchecked", action="store_true", help="leave the agreement out")
    parser.add_argument("--only", nargs="+", choices=("predict", "train", "loaded"))
    add_options(parser)
    parser.add_argument("--peak", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.peak:
        print_peak(*args.peak, args)
        return
    threads = f"{args.threads} thread(s)"
    print(f"pixelwise {pw.__version__}, torch {torch.__version__}, {threads}{describe(args)}")
    if not args.unchecked:
        check_agreement(args.device)
    if args.device.type != "cpu":
        warm_libraries(args.device)
    every = ("predict", "train") if args.device.type == "cpu" else ("predict", "train", "loaded")
    for what in args.only or every:
        for precision in args.precision:
            compare(what, args, precision)


if __name__ == "__main__":
    main()
