"""`pixelwise bench`: how fast a model is and how much memory it takes."""

from __future__ import annotations

import json as json_text
from typing import Annotated

import typer


def command(
    model: Annotated[
        str, typer.Argument(help="A trained model, a checkpoint, a run folder, or a system's name.")
    ],
    *,
    size: Annotated[str, typer.Option(help="Picture, HEIGHTxWIDTH pixels.")] = "480x640",
    rounds: Annotated[int, typer.Option(help="Measured predictions.")] = 10,
    warm_up: Annotated[int, typer.Option(help="Predictions before measuring.")] = 2,
    batch_size: Annotated[int, typer.Option(help="Pictures per forward pass.")] = 1,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")] = "auto",
    json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> int:
    """Time reading, preparing, network and decoding of one picture, and the peak memory."""
    from pixelwise.bench import measure
    from pixelwise.errors import UsageError

    if min(rounds, batch_size) < 1 or warm_up < 0:
        raise UsageError("--rounds and --batch-size must be at least 1, --warm-up at least 0")
    timing = measure(
        model,
        size=read_size(size),
        rounds=rounds,
        warm_up=warm_up,
        batch_size=batch_size,
        device=device,
    )
    if json:
        print(json_text.dumps(timing.to_dict(), indent=2))
        return 0
    height, width = timing.size
    print(
        f"{timing.model}, {timing.parameters / 1e6:.1f} M parameters, {timing.gflops:.1f} GFLOPs, "
        f"on {timing.device}"
    )
    print(
        f"picture {height}x{width}, batch {timing.batch_size}, "
        f"{timing.threads} threads, median of {timing.rounds}"
    )
    for stage, ms in timing.stages_ms.items():
        print(f"  {stage:10} {ms:9.1f} ms")
    print(f"  {'total':10} {timing.total_ms:9.1f} ms   {timing.images_per_s:.1f} pictures/s")
    print(f"  peak memory {timing.peak_memory_mb:.0f} MB")
    return 0


def read_size(text: str) -> tuple[int, int]:
    """`480x640` as (480, 640); one number is a square."""
    from pixelwise.errors import UsageError

    parts = text.lower().split("x")
    if len(parts) > 2 or not all(p.isdigit() and 16 <= int(p) <= 20_000 for p in parts):
        raise UsageError(f"--size {text!r}: give HEIGHTxWIDTH such as 480x640, each 16..20000")
    return int(parts[0]), int(parts[-1])
