"""PolarMask's targets of many masks: all at once, beside a loop over points and rays, in one run.

    python benchmarks/polarmask_targets.py [--masks 1000] [--rays 36] [--rounds 3]

The masks are smooth blobs with bays, 24 to 320 pixels across. From each the rays are measured at
the points that FCOS's center sampling would train, at most 9. The loop is the paper's description
taken literally: per point the angle and the distance of every contour pixel, then ray by ray the
farthest pixel at its degree, or at the next degrees that have one. It runs on torch tensors, in
which the targets of a data pipeline are made, and on numpy arrays, which are lighter for short
vectors. All read the same contours, the loops for nothing: tracing counts for our side only. Times
are CPU seconds of this process on one thread, the best of the rounds.
"""

import argparse
import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pixelwise.ops.contours import Contours, centroids, largest_contours
from pixelwise.ops.points import assign_points, place_points
from pixelwise.ops.polar import NO_RAY, contour_rays
from pixelwise.types import MaskCrops

STRIDES, BOUNDS = (8, 16, 32, 64, 128), (64.0, 128.0, 256.0, 512.0)
SIZE = (768, 1280)


def blobs(count: int) -> MaskCrops:
    """Masks anywhere in a picture: discs with a few harmonics on their radius."""
    rng = np.random.default_rng(0)
    windows, crops = [], []
    for _ in range(count):
        side = int(np.exp(rng.uniform(np.log(24), np.log(320))))
        y, x = (np.mgrid[:side, :side] + 0.5) / side * 2 - 1
        angle, radius = np.arctan2(y, x), np.hypot(x, y)
        edge = np.full_like(angle, 0.7)
        for k in range(2, 7):
            edge += rng.normal(0, 0.22 / k) * np.cos(k * angle + rng.uniform(0, 2 * np.pi))
        mask = radius < edge.clip(0.15, 0.98)
        x0, y0 = rng.integers(0, SIZE[1] - side), rng.integers(0, SIZE[0] - side)
        windows.append([x0, y0, x0 + side, y0 + side])
        crops.append(mask.reshape(-1).astype(np.uint8))
    return MaskCrops(SIZE, torch.tensor(windows), torch.from_numpy(np.concatenate(crops)))


def trained_points(masks: MaskCrops, contours: Contours) -> tuple[Tensor, Tensor]:
    """The points around each mass centre as if every mask were alone in the picture."""
    grids = [(-(-SIZE[0] // s), -(-SIZE[1] // s)) for s in STRIDES]
    points = place_points(grids, STRIDES, BOUNDS, torch.zeros(0))
    boxes, centres = masks.windows.float(), centroids(contours).float()
    xy, owners = [], []
    for i in range(len(masks)):
        found = assign_points(points, boxes[i : i + 1], centres[i : i + 1], radius=1.5)
        xy.append(points.xy[found == 0])
        owners.append(torch.full((len(xy[-1]),), i))
    return torch.cat(xy), torch.cat(owners)


def rays_in_numpy(contour: np.ndarray, point: np.ndarray, rays: int) -> np.ndarray:
    """The lengths [rays] from one point to one contour [P, 2]."""
    dx, dy = (contour - point).T.astype(np.float32)
    degrees = np.arctan2(dx, dy) * np.float32(180) / np.float32(np.pi)
    degrees = np.where(degrees < 0, degrees + 360, degrees).astype(np.int64)
    distances = np.sqrt(dx * dx + dy * dy)
    lengths = np.full(rays, NO_RAY, np.float32)
    for ray in range(rays):
        for near in degrees_to_try(ray * 360 // rays):
            there = degrees == near
            if there.any():
                lengths[ray] = max(distances[there].max(), NO_RAY)
                break
    return lengths


def rays_in_torch(contour: Tensor, point: Tensor, rays: int) -> Tensor:
    """The same with tensors."""
    dx, dy = (contour - point).T
    degrees = torch.atan2(dx, dy) * 180 / math.pi
    degrees = torch.where(degrees < 0, degrees + 360, degrees).long()
    distances = torch.sqrt(dx * dx + dy * dy)
    lengths = torch.full((rays,), NO_RAY)
    for ray in range(rays):
        for near in degrees_to_try(ray * 360 // rays):
            there = degrees == near
            if there.any():
                lengths[ray] = distances[there].max().clamp(min=NO_RAY)
                break
    return lengths


def degrees_to_try(angle: int) -> tuple[int, ...]:
    return (angle, angle + 1, angle - 1, angle + 2, angle - 2, angle + 3, angle - 3)


def loop(
    one: Callable[[Any, Any, int], Any], xy: Any, contours: Contours, points: Any, owner: Tensor
) -> Callable[[int], list[Any]]:
    """All points one after another, a contour each."""
    starts, numbers = contours.starts.tolist(), owner.tolist()
    return lambda rays: [
        one(xy[starts[i] : starts[i + 1]], point, rays)
        for point, i in zip(points, numbers, strict=True)
    ]


def timed(work: Callable[[], Any], rounds: int) -> tuple[float, Any]:
    """CPU seconds of the fastest round, and the result."""
    best, result = float("inf"), None
    for _ in range(rounds):
        start = time.process_time()
        result = work()
        best = min(best, time.process_time() - start)
    return best, result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--masks", type=int, default=1000)
    parser.add_argument("--rays", type=int, default=36)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    masks, index = blobs(args.masks), torch.arange(args.masks)
    traced, contours = timed(lambda: largest_contours(masks, index), args.rounds)
    centred, _ = timed(lambda: centroids(contours), args.rounds)
    points, owner = trained_points(masks, contours)
    ours, lengths = timed(
        lambda: contour_rays(contours, points, owner, rays=args.rays), args.rounds
    )
    total = ours + traced + centred
    print(
        f"torch {torch.__version__}, one thread: {len(masks)} masks, {len(points)} points, "
        f"{len(contours.xy) / len(masks):.0f} contour pixels per mask, {args.rays} rays"
    )
    print(f"rays of all at once       {1e3 * ours:8.0f} ms")
    print(
        f"with tracing and centres  {1e3 * total:8.0f} ms "
        f"({1e3 * traced:.0f} and {1e3 * centred:.0f})"
    )
    loops = {
        "torch": loop(rays_in_torch, contours.xy.float(), contours, points, owner),
        "numpy": loop(rays_in_numpy, contours.xy.numpy(), contours, points.numpy(), owner),
    }
    for name, run in loops.items():
        theirs, wanted = timed(lambda run=run: run(args.rays), args.rounds)
        reference = torch.stack([torch.as_tensor(x) for x in wanted])
        apart = ((lengths - reference).abs() / reference).max().item()
        print(
            f"loop in {name}             {1e3 * theirs:8.0f} ms   ratio {theirs / ours:.1f}, "
            f"{theirs / total:.1f} with tracing; lengths differ by {apart:.0e} at most"
        )


if __name__ == "__main__":
    main()
