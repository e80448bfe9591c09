"""Pasting, run lengths and mask targets against torchvision and pycocotools, in one run.

    python benchmarks/masks.py [--repeat 3] [--instances 100] [--device cpu]

Times are CPU seconds of this process on one thread, the best of the repeats, so that a busy machine
disturbs them little. A ratio above 1 says how many times faster ours is.

With maps, boxes and targets on a GPU (`--device cuda`) times are by the clock. Pasting is then
timed up to COCO's run lengths: torchvision's masks are made there and turned round for pycocotools.
"""

import argparse
from collections.abc import Callable

import numpy as np
import torch
import torchvision
from devices import WARM_UP, add_options, describe, now
from pycocotools import mask as coco
from torch import Tensor
from torchvision.models.detection.roi_heads import paste_masks_in_image

from pixelwise.ops import rle
from pixelwise.ops.masks import mask_targets, paste_masks
from pixelwise.types import RunLengths, Size

SIZES: tuple[Size, ...] = ((480, 640), (1500, 3000))
CPU = torch.device("cpu")
SHARES = (0.1, 0.3, 1.0)  # largest side of a box, as a part of the picture's


def best_ms(work: Callable[[], object], repeat: int, device: torch.device = CPU) -> float:
    times = []
    for _ in range(WARM_UP[device.type] if device != CPU else 0):
        work()
    for _ in range(repeat):
        start = now(device)
        work()
        times.append(now(device) - start)
    return min(times) * 1000


def scene(n: int, size: Size, share: float) -> tuple[Tensor, Tensor]:
    """Boxes of all sizes up to a share of the picture, and blob-shaped maps with some noise."""
    g = torch.Generator().manual_seed(0)
    extent = torch.rand(n, 2, generator=g) * share * torch.tensor(size[::-1]) + 8
    corner = torch.rand(n, 2, generator=g) * (torch.tensor(size[::-1]) - extent).clamp(min=0)
    y, x = torch.meshgrid(torch.linspace(-1, 1, 28), torch.linspace(-1, 1, 28), indexing="ij")
    noise = torch.randn(n, 28, 28, generator=g) / 2
    maps = torch.sigmoid(8 * (0.8 - (x**2 + y**2).sqrt()) + noise)
    return maps, torch.cat([corner, corner + extent], 1)


def line(what: str, ours: float, theirs: float) -> None:
    print(f"  {what:<42} {theirs:9.1f} ms {ours:9.1f} ms {theirs / ours:7.1f} x")


def compare(n: int, size: Size, share: float, repeat: int) -> None:
    maps, boxes = scene(n, size, share)
    theirs = best_ms(lambda: paste_masks_in_image(maps[:, None], boxes, size), repeat)
    for mode in ("grid", "expanded"):
        ours = best_ms(lambda m=mode: paste_masks(maps, boxes, size, mode=m), repeat)
        line(f"paste ({mode}) | torchvision", ours, theirs)
    masks = paste_masks(maps, boxes, size)
    few = masks.select(np.arange(min(n, 20)))
    dense = rle.decode(few)
    columns = np.asfortranarray(dense.transpose(1, 2, 0))
    coded = [dict(r, counts=r["counts"].encode()) for r in rle.to_coco(few)]
    line(
        f"encode {len(few)} dense masks | pycocotools",
        best_ms(lambda: rle.encode(dense), repeat),
        best_ms(lambda: coco.encode(columns), repeat),
    )
    line(
        f"decode {len(few)} masks | pycocotools",
        best_ms(lambda: rle.decode(few), repeat),
        best_ms(lambda: coco.decode(coded), repeat),
    )
    compare_targets(few, boxes, repeat, CPU)


def compare_on_gpu(n: int, size: Size, share: float, repeat: int, device: torch.device) -> None:
    maps, boxes = scene(n, size, share)
    few = paste_masks(maps, boxes, size).select(np.arange(min(n, 20)))
    maps, boxes = maps.to(device), boxes.to(device)

    def theirs() -> list[dict]:
        masks = paste_masks_in_image(maps[:, None], boxes, size)[:, 0] > 0.5  # [N, H, W]
        columns = masks.to(torch.uint8).transpose(1, 2).contiguous()
        return coco.encode(columns.cpu().numpy().transpose(2, 1, 0))

    line(
        "paste and encode | torchvision, pycocotools",
        best_ms(lambda: rle.to_coco(paste_masks(maps, boxes, size)), repeat, device),
        best_ms(theirs, repeat, device),
    )
    compare_targets(few, boxes.cpu(), repeat, device)


def compare_targets(masks: RunLengths, boxes: Tensor, repeat: int, device: torch.device) -> None:
    index = torch.arange(128) % len(masks)
    stack = torch.from_numpy(rle.decode(masks))[:, None].float().to(device)
    rois = torch.cat([index[:, None].float(), boxes[index] + 3], 1).to(device)
    crops, index = rle.decode_crops(masks).to(device), index.to(device)
    line(
        "128 targets | torchvision on dense masks",
        best_ms(lambda: mask_targets(crops, rois[:, 1:], index, 28), repeat, device),
        best_ms(lambda: torchvision.ops.roi_align(stack, rois, 28, 1.0, -1, True), repeat, device),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--instances", type=int, default=100)
    add_options(parser, with_precision=False)
    args = parser.parse_args()
    torch.set_num_threads(1)
    versions = f"torch {torch.__version__}, torchvision {torchvision.__version__}"
    print(f"{versions}, one thread{describe(args)}")
    print(f"  {'':<42} {'theirs':>12} {'ours':>12}")
    for size in SIZES:
        for share in SHARES:
            where = f"{size[1]} x {size[0]}, boxes up to {share:.0%} of a side"
            print(f"\n{args.instances} instances, {where}")
            if args.device == CPU:
                compare(args.instances, size, share, args.repeat)
            else:
                compare_on_gpu(args.instances, size, share, args.repeat, args.device)


if __name__ == "__main__":
    main()
