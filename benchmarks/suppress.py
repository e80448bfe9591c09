"""Suppressions of duplicates beside torchvision's `batched_nms`, in one run.

    python benchmarks/suppress.py [--candidates 200 1000 5000] [--shared 100 300] [--rounds 9]
        [--device cpu]

Times are processor time of this process on one thread, the median of the rounds, which take turns;
in a round each method runs as often as 5 ms allow, at least once. Candidates are jittered copies of
objects, ten of each, every one with a class and a score; boxes and masks (the boxes filled, on
cells of 8 pixels of a 640 x 640 picture) say the same. Fast NMS gets a table of scores for all
classes, once with one candidate a box (mmdet's YOLACT) and once with every class of some boxes (its
authors'). A ratio is torchvision's time over ours. What each method keeps differs by definition, so
the counts are printed too. On a GPU, where all candidates lie, times are by the clock.
"""

import argparse
import statistics
from collections.abc import Callable

import torch
import torchvision
from devices import WARM_UP, add_options, describe, now
from torch import Tensor

from pixelwise.ops.suppress import fast_nms, greedy_nms, mask_nms, matrix_nms, top_k_nms

SIDE, STRIDE = 640, 8
COPIES = 10  # candidates of an object
ROUND = 0.005  # seconds that a method has in a round


def candidates(count: int, classes: int) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes [N, 4], scores [N] in (0, 1) and labels [N]."""
    g = torch.Generator().manual_seed(0)
    objects = max(1, count // COPIES)
    sides = 24 + 136 * torch.rand(objects, 2, generator=g)
    corner = torch.rand(objects, 2, generator=g) * (SIDE - sides)
    which = torch.arange(count) % objects
    moved = corner[which] + 0.15 * sides[which] * torch.randn(count, 2, generator=g)
    boxes = torch.cat([moved, moved + sides[which]], dim=1).clamp(0, SIDE)
    labels = torch.randint(0, classes, (objects,), generator=g)[which]
    return boxes, torch.rand(count, generator=g), labels


def fill(boxes: Tensor) -> Tensor:
    """Masks [N, cells] bool of the cells whose centres lie in the boxes."""
    at = (torch.arange(SIDE // STRIDE) + 0.5) * STRIDE
    rows = (at >= boxes[:, 1:2]) & (at < boxes[:, 3:])
    columns = (at >= boxes[:, :1]) & (at < boxes[:, 2:3])
    return (rows[:, :, None] & columns[:, None]).flatten(1)


def methods(count: int, classes: int, device: torch.device) -> dict[str, Callable[[], int]]:
    """What is timed; each returns how many candidates it keeps."""
    boxes, scores, labels = candidates(count, classes)
    table = torch.full((count, classes), -1.0)
    table[torch.arange(count), labels] = scores
    everything = (boxes, scores, labels, fill(boxes), table)
    boxes, scores, labels, masks, table = (x.to(device) for x in everything)

    return {
        "torchvision batched_nms": lambda: len(
            torchvision.ops.batched_nms(boxes, scores, labels, 0.5)
        ),
        "greedy_nms": lambda: int(greedy_nms(boxes, scores, labels, iou_thresh=0.5).sum()),
        "fast_nms": lambda: by_table(fast_nms, boxes, table),
        "top_k_nms": lambda: by_table(top_k_nms, boxes, table),
        "matrix_nms, gaussian": lambda: int((matrix_nms(masks, labels, scores) >= 0.05).sum()),
        "matrix_nms, linear": lambda: int(
            (matrix_nms(masks, labels, scores, kernel="linear") >= 0.05).sum()
        ),
        "mask_nms": lambda: int(mask_nms(masks, labels, scores, iou_thresh=0.5).sum()),
    }


def shared(count: int, classes: int, device: torch.device) -> dict[str, Callable[[], int]]:
    """The same where every box is a candidate of every class."""
    boxes, _, _ = candidates(count, classes)
    table = torch.rand(count, classes, generator=torch.Generator().manual_seed(1))
    every, labels = boxes.repeat_interleave(classes, 0), torch.arange(classes).repeat(count)
    boxes, table, every, labels = (x.to(device) for x in (boxes, table, every, labels))
    return {
        "torchvision batched_nms": lambda: len(
            torchvision.ops.batched_nms(every, table.flatten(), labels, 0.5)
        ),
        "fast_nms": lambda: by_table(fast_nms, boxes, table),
        "top_k_nms": lambda: by_table(top_k_nms, boxes, table),
    }


def by_table(
    run: Callable[..., tuple[Tensor, Tensor, Tensor]], boxes: Tensor, table: Tensor
) -> int:
    found = run(boxes, table, iou_thresh=0.5, top_k=200, count=table.numel())
    return int((found[2] >= 0).sum())


def seconds(run: Callable[[], int], device: torch.device) -> float:
    start, calls, spent = now(device), 0, 0.0
    while spent < ROUND:
        run()
        calls += 1
        spent = now(device) - start
    return spent / calls


def compare(runs: dict[str, Callable[[], int]], rounds: int, device: torch.device) -> None:
    kept = {}
    for _ in range(WARM_UP[device.type]):
        kept = {name: run() for name, run in runs.items()}
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            times[name].append(seconds(run, device))
    medians = {name: statistics.median(values) for name, values in times.items()}
    base = next(iter(medians.values()))
    for name, value in medians.items():
        print(f"  {name:24} {1e3 * value:9.3f} ms  ratio {base / value:7.2f}  kept {kept[name]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--candidates", type=int, nargs="+", default=[200, 1000, 5000])
    parser.add_argument("--shared", type=int, nargs="+", default=[100, 300])
    parser.add_argument("--classes", type=int, default=80)
    parser.add_argument("--rounds", type=int, default=9)
    add_options(parser, with_precision=False)
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, one thread, {args.classes} classes{describe(args)}")
    for count in args.candidates:
        print(f"{count} candidates")
        compare(methods(count, args.classes, args.device), args.rounds, args.device)
    for count in args.shared:
        print(f"{count} boxes, each a candidate of every class")
        compare(shared(count, args.classes, args.device), args.rounds, args.device)


if __name__ == "__main__":
    main()
