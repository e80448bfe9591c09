"""How fast a model is, stage by stage, and how much memory it takes."""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from statistics import median
from typing import Any, TypedDict, Unpack

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from pixelwise import catalogue
from pixelwise.data.transforms import prepare_image
from pixelwise.errors import PixelwiseError, UsageError
from pixelwise.predict import Segmenter, load, resolve_device
from pixelwise.systems import SYSTEMS, create, list_systems

_CLASSES = 21  # of a system without weights


@dataclass(frozen=True, kw_only=True)
class Timing:
    """What was measured.

    Args:
        model:      as asked for.
        device:     that ran it.
        size:       (height, width) of the picture.
        input_size: (height, width) of what the network is fed, padding included.
        batch_size: pictures per forward pass.
        rounds:     measured, after as many as `warm_up`.
        parameters: of the network, heads that only training uses included.
        gflops:     1e9 operations of a forward pass on one picture: two for a multiplication with
                    its addition; convolutions and matrix products only.
        stages_ms:  median milliseconds per picture by stage.
        total_ms:   their sum.
        cpu_ms:     median processor time per picture, all threads and stages: less disturbed by
                    other work on the machine.
        images_per_s: 1000 / total_ms.
        peak_memory_mb: of the GPU during the rounds, or of the whole process on the CPU.
        threads:    of torch on the CPU.
    """

    model: str
    device: str
    size: tuple[int, int]
    input_size: tuple[int, int]
    batch_size: int
    rounds: int
    parameters: int
    gflops: float
    stages_ms: dict[str, float]
    total_ms: float
    cpu_ms: float
    images_per_s: float
    peak_memory_mb: float
    threads: int

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values."""
        return asdict(self)


class Conditions(TypedDict, total=False):
    """How models are measured, as for `measure`; every key may be left out."""

    size: tuple[int, int]
    rounds: int
    warm_up: int
    batch_size: int
    device: str | None


def find_models(names: Sequence[str]) -> list[str]:
    """What was named, in that order and once each; a pattern stands for all rows it matches.

    Raises:
        UsageError: a pattern that matches no row of `SYSTEMS`.
        ModelError: no such model.
    """
    found: list[str] = []
    for name in names:
        is_pattern = any(sign in name for sign in "*?[")
        rows = list_systems(name) if is_pattern else [name]
        if not rows:
            raise UsageError(f"no system matches {name!r}; see `pixelwise models list`")
        if not is_pattern and name not in SYSTEMS:
            catalogue.find_checkpoint(name)
        found += rows
    return list(dict.fromkeys(found))


def measure_apart(models: Sequence[str], **conditions: Unpack[Conditions]) -> Iterator[Timing]:
    """Measure models one after another, each in a process of its own.

    So the peak memory of one says nothing about those before it.

    Args:
        models:     as from `find_models`.
        conditions: the same for all; see `measure`.

    Raises:
        PixelwiseError: a process that was ended from outside.
    """
    for model in models:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            try:
                yield pool.submit(measure, model, **conditions).result()
            except BrokenProcessPool:
                raise PixelwiseError(
                    f"{model}: its process was ended, most likely for its memory; "
                    "try a smaller --size or --batch-size"
                ) from None


def measure(
    model: str,
    *,
    size: tuple[int, int] = (480, 640),
    rounds: int = 10,
    warm_up: int = 2,
    batch_size: int = 1,
    device: str | None = None,
) -> Timing:
    """Time a model on a picture of this size, from the bytes of a JPEG to the decoded prediction.

    The picture is noise smoothed over a few pixels: the network does not care, and instance
    decoding meets as many candidates as an untrained system gives, which is its worst case.

    Args:
        model:      a trained model as for `load`, or a row of `SYSTEMS` (untrained weights).
        size:       (height, width) of the picture.
        rounds:     measured.
        warm_up:    not measured.
        batch_size: pictures per forward pass.
        device:     as for `resolve_device`.
    """
    segmenter = _segmenter(model, device)
    content = _jpeg(_noise(size))
    sources = [content] * batch_size
    for _ in range(warm_up):
        segmenter.predict(sources, batch_size=batch_size)
    if segmenter.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(segmenter.device)
    times: list[dict[str, float]] = []
    spent: list[float] = []
    for _ in range(rounds):
        start = time.process_time()
        times += [r.times for r in segmenter.predict(sources, batch_size=batch_size)]
        spent.append((time.process_time() - start) / batch_size)
    image, sizes = prepare_image(_noise(size), segmenter.input)
    stages = {stage: median(t[stage] for t in times) for stage in times[0]}
    total = sum(stages.values())
    return Timing(
        model=model,
        device=_describe(segmenter.device),
        size=size,
        input_size=sizes.input,
        batch_size=batch_size,
        rounds=rounds,
        parameters=sum(p.numel() for p in segmenter.system.parameters()),
        gflops=round(_gflops(segmenter, image), 3),
        stages_ms={stage: round(ms, 3) for stage, ms in stages.items()},
        total_ms=round(total, 3),
        cpu_ms=round(1e3 * median(spent), 3),
        images_per_s=round(1e3 / total, 2),
        peak_memory_mb=round(_peak_mb(segmenter.device), 1),
        threads=torch.get_num_threads(),
    )


def _segmenter(model: str, device: str | None) -> Segmenter:
    if model not in SYSTEMS:
        return load(model, device=device)
    row = SYSTEMS[model]
    torch.default_generator.manual_seed(0)
    classes = int(getattr(row.config, "num_classes", _CLASSES))
    return Segmenter(
        create(model),
        name=model,
        classes=[f"class {i}" for i in range(classes)],
        input=row.input,
        task=row.task,
        device=resolve_device(device),
    )


def _gflops(segmenter: Segmenter, image: Tensor) -> float:
    """Of one forward pass on a picture [C, H, W]."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        segmenter.system(image[None].to(segmenter.device))
    return counter.get_total_flops() / 1e9


def _noise(size: tuple[int, int]) -> npt.NDArray[np.uint8]:
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (size[0] // 8 + 1, size[1] // 8 + 1, 3), np.uint8)
    return np.repeat(np.repeat(coarse, 8, 0), 8, 1)[: size[0], : size[1]]


def _jpeg(pixels: npt.NDArray[np.uint8]) -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=90)
    return file.getvalue()


def _describe(device: torch.device) -> str:
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return str(device)


def _peak_mb(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    import resource  # not on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1e6 if sys.platform == "darwin" else 1e3)  # bytes there, kilobytes elsewhere
