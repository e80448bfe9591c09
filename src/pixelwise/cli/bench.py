"""`pixelwise bench`: how fast a model is and how much memory it takes."""

from __future__ import annotations

import json as json_text
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pixelwise.bench import Conditions, Timing

_COLUMNS = ("model", "input", "M params", "GFLOPs", "network ms", "total ms", "CPU ms", "peak MB")


def command(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL...",
            help="Trained models, checkpoints, run folders, names or patterns of systems.",
        ),
    ],
    *,
    size: Annotated[str, typer.Option(help="Picture, HEIGHTxWIDTH pixels.")] = "480x640",
    rounds: Annotated[int, typer.Option(help="Measured predictions.")] = 10,
    warm_up: Annotated[int, typer.Option(help="Predictions before measuring.")] = 2,
    batch_size: Annotated[int, typer.Option(help="Pictures per forward pass.")] = 1,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")] = "auto",
    json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> int:
    """Time reading, preparing, network and decoding of one picture, and the peak memory.

    Several models become a table, each measured in a process of its own.
    """
    from pixelwise.bench import find_models, measure, measure_apart
    from pixelwise.errors import UsageError

    if min(rounds, batch_size) < 1 or warm_up < 0:
        raise UsageError("--rounds and --batch-size must be at least 1, --warm-up at least 0")
    conditions: Conditions = {
        "size": read_size(size),
        "rounds": rounds,
        "warm_up": warm_up,
        "batch_size": batch_size,
        "device": device,
    }
    names = find_models(models)
    if len(names) > 1:
        timings = measure_apart(names, **conditions)
        if json:
            print(json_text.dumps([timing.to_dict() for timing in timings], indent=2))
        else:
            _print_table(timings, names)
        return 0
    timing = measure(names[0], **conditions)
    if json:
        print(json_text.dumps(timing.to_dict(), indent=2))
    else:
        _print_stages(timing)
    return 0


def _print_stages(timing: Timing) -> None:
    """One model, stage by stage."""
    print(
        f"{timing.model}, {timing.parameters / 1e6:.1f} M parameters, {timing.gflops:.1f} GFLOPs, "
        f"on {timing.device}"
    )
    print(_conditions(timing))
    for stage, ms in timing.stages_ms.items():
        print(f"  {stage:10} {ms:9.1f} ms")
    print(f"  {'total':10} {timing.total_ms:9.1f} ms   {timing.images_per_s:.1f} pictures/s")
    print(f"  peak memory {timing.peak_memory_mb:.0f} MB")


def _print_table(timings: Iterable[Timing], names: Sequence[str]) -> None:
    """A row per model as soon as it is measured, in a form that Markdown reads as a table."""
    widths = [max(map(len, [_COLUMNS[0], *names])), *(len(name) for name in _COLUMNS[1:])]
    widths[1] = 9  # 1024x2048
    last = None
    for timing in timings:
        if last is None:
            print(_row(_COLUMNS, widths))
            print(_row(["-" * widths[0], *("-" * (w - 1) + ":" for w in widths[1:])], widths))
        last = timing
        cells = [
            timing.model,
            "x".join(map(str, timing.input_size)),
            f"{timing.parameters / 1e6:.2f}",
            f"{timing.gflops:.1f}",
            _three_digits(timing.stages_ms["network"]),
            _three_digits(timing.total_ms),
            _three_digits(timing.cpu_ms),
            f"{timing.peak_memory_mb:.0f}",
        ]
        print(_row(cells, widths), flush=True)
    if last is not None:
        print(f"\n{_conditions(last)}, on {last.device}; peak memory of the whole process")


def _three_digits(ms: float) -> str:
    return f"{ms:.0f}" if ms >= 99.95 else f"{ms:.1f}"


def _row(cells: Sequence[str], widths: Sequence[int]) -> str:
    first, *rest = zip(cells, widths, strict=True)
    return " | ".join([f"| {first[0]:{first[1]}}", *(f"{c:>{w}}" for c, w in rest)]) + " |"


def _conditions(timing: Timing) -> str:
    height, width = timing.size
    return (
        f"picture {height}x{width}, batch {timing.batch_size}, "
        f"{timing.threads} threads, median of {timing.rounds}"
    )


def read_size(text: str) -> tuple[int, int]:
    """`480x640` as (480, 640); one number is a square."""
    from pixelwise.errors import UsageError

    parts = text.lower().split("x")
    if len(parts) > 2 or not all(p.isdigit() and 16 <= int(p) <= 20_000 for p in parts):
        raise UsageError(f"--size {text!r}: give HEIGHTxWIDTH such as 480x640, each 16..20000")
    return int(parts[0]), int(parts[-1])
