"""How long a training picture takes on one core, stage by stage, and how many a second arrive.

    python benchmarks/loading.py [--data ../shared/data] [--pictures 60] [--workers 1]

Prints milliseconds of processor time per picture (median) of reading and of each stage of
`TrainTransform`, and pictures per second of wall clock through the loader.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

import pixelwise.data
from pixelwise.data.geometry import Geometry
from pixelwise.data.loader import EpochSampler, make_loader
from pixelwise.data.photometric import blur, jitter_color
from pixelwise.data.scene import place_objects, to_tensor
from pixelwise.data.transforms import TrainTransform, normalise
from pixelwise.data.views import draw_view
from pixelwise.spec import AugmentSpec, InputSpec, ResizeRule


def cases(root: Path) -> dict[str, tuple[Any, InputSpec, AugmentSpec, Any]]:
    camvid = pixelwise.data.open(root / "camvid", format="camvid").split("train").as_semantic()
    nuclei = pixelwise.data.open(root / "nuclei").split("train").as_instances()
    counts = np.array([len(nuclei.annotation(i)[1].masks) for i in range(len(nuclei))])
    crowded = nuclei.subset(((counts >= 80) & (counts <= 140)).nonzero()[0])
    rule = ResizeRule(short_side=448, long_side=896, pad_divisor=32)
    cells = AugmentSpec(crop=(320, 320), scale=(0.7, 1.4), vertical_flip=0.5, color=0.3)
    return {
        "camvid, crop 256x320": (
            camvid,
            InputSpec(),
            AugmentSpec(crop=(256, 320), color=0.3),
            "semantic",
        ),
        "nuclei, crop 320x320": (nuclei, InputSpec(resize=rule), cells, "instance"),
        "nuclei, 80-140 objects, crop 320x320": (
            crowded,
            InputSpec(resize=rule),
            cells,
            "instance",
        ),
        "nuclei, 80-140 objects, own size": (
            crowded,
            InputSpec(),
            AugmentSpec(scale=(1.0, 1.0), vertical_flip=0.5, color=0.3),
            "instance",
        ),
        "the same with copy-paste and mosaic": (
            crowded,
            InputSpec(resize=rule),
            AugmentSpec(crop=(320, 320), scale=(0.7, 1.4), color=0.3, copy_paste=1.0, mosaic=0.5),
            "instance",
        ),
    }


def timed(times: dict[str, list[float]], stage: str, work: Callable[[], Any]) -> Any:
    begin = time.process_time()
    result = work()
    times.setdefault(stage, []).append(1e3 * (time.process_time() - begin))
    return result


def measure(
    case: tuple[Any, InputSpec, AugmentSpec, Any], pictures: int, workers: int
) -> dict[str, float]:
    view, spec, augment, task = case
    transform = TrainTransform(spec, augment, task)
    times: dict[str, list[float]] = {}
    for i in range(min(pictures, len(view))):
        rng = np.random.default_rng(i)
        sample = timed(times, "read", lambda i=i: view[i])
        other = view[(i + 1) % len(view)]
        timed(times, "transform", lambda s=sample, r=rng, o=other: transform(s, r, lambda: o))
        rng = np.random.default_rng(i)
        content = spec.resize.content_size(sample.size)
        geometry: Geometry = timed(
            times,
            ". draw",
            lambda s=sample, c=content, r=rng: draw_view(
                s, c, augment, task=task, rng=r, crop=augment.crop
            ),
        )
        image = timed(
            times, ". pixels", lambda g=geometry, s=sample: g.image(to_tensor(s.image, 3)).float()
        )
        if sample.instances is not None:
            timed(times, ". objects", lambda g=geometry, s=sample: place_objects(s.instances, g))
        if sample.labels is not None:
            timed(times, ". labels", lambda g=geometry, s=sample: g.labels(s.labels))
        image = timed(times, ". colour", lambda x=image, r=rng: jitter_color(x, 0.3, r))
        timed(times, ". blur (if drawn)", lambda x=image, r=rng: blur(x, r))
        timed(times, ". normalise", lambda x=image: normalise(x, spec))
    row = {stage: statistics.median(values) for stage, values in times.items()}
    row["read + transform, mean"] = statistics.mean(times["read"]) + statistics.mean(
        times["transform"]
    )
    sampler = EpochSampler(len(view), batch_size=4, seed=0)
    begin, seen = time.perf_counter(), 0
    loader = make_loader(view, transform, batch_size=4, workers=workers, sampler=sampler, seed=0)
    for batch in loader:
        seen += len(batch)
        if seen >= 2 * pictures:
            break
    row["pictures/s of the loader"] = seen / (time.perf_counter() - begin)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--pictures", type=int, default=60)
    parser.add_argument("--workers", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name, case in cases(options.data).items():
        print(f"{name}: {len(case[0])} pictures")
        for stage, value in measure(case, options.pictures, options.workers).items():
            print(f"  {stage:<28}{value:8.2f}" + ("" if "/s" in stage else " ms"))


if __name__ == "__main__":
    main()
