"""Pasting, run lengths and mask targets against torchvision and pycocotools, in one run.

    python benchmarks/masks.py [--repeat 3] [--instances 100]

Times are CPU seconds of this process on one thread, the best of the repeats, so that a busy machine
disturbs them little. A ratio above 1 says how many times faster ours is.
"""

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch
import torchvision
from pycocotools import mask as coco
from torch import Tensor
from torchvision.models.detection.roi_heads import paste_masks_in_image

from pixelwise.ops import rle
from pixelwise.ops.masks import mask_targets, paste_masks
from pixelwise.types import Size

SIZES: tuple[Size, ...] = ((480, 640), (1500, 3000))
SHARES = (0.1, 0.3, 1.0)  # largest side of a box, as a part of the picture's


def best_ms(work: Callable[[], object], repeat: int) -> float:
    times = []
    for _ in range(repeat):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
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
    print(f"\n{n} instances, {size[1]} x {size[0]}, boxes up to {share:.0%} of a side")
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
    crops, index = rle.decode_crops(few), torch.arange(128) % len(few)
    stack = torch.from_numpy(dense)[:, None].float()
    rois = torch.cat([index[:, None].float(), boxes[index] + 3], 1)
    line(
        "128 targets | torchvision on dense masks",
        best_ms(lambda: mask_targets(crops, rois[:, 1:], index, 28), repeat),
        best_ms(lambda: torchvision.ops.roi_align(stack, rois, 28, 1.0, -1, True), repeat),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--instances", type=int, default=100)
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, torchvision {torchvision.__version__}, one thread")
    print(f"  {'':<42} {'theirs':>12} {'ours':>12}")
    for size in SIZES:
        for share in SHARES:
            compare(args.instances, size, share, args.repeat)


if __name__ == "__main__":
    main()
