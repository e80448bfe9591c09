"""Where a benchmark runs: how time, memory and precision are handled there.

On the CPU time is processor time of this process, so that other work disturbs it little. On a GPU
it is by the clock, and the GPU is waited for before it is read. Nothing here knows the two sides:
both get the same.
"""

from __future__ import annotations

import argparse
import gc
import time

import torch
from torch import nn

HALVES = {"bf16": torch.bfloat16, "fp16": torch.float16}
PRECISIONS = ("fp32", "tf32", *HALVES)
WARM_UP = {"cpu": 1, "cuda": 3}  # untimed runs


def add_options(parser: argparse.ArgumentParser, *, with_precision: bool = True) -> None:
    parser.add_argument("--device", type=torch.device, default="cpu", help="cpu or cuda")
    parser.set_defaults(cudnn_benchmark=False)
    if not with_precision:
        return
    parser.add_argument(
        "--precision",
        nargs="+",
        choices=PRECISIONS,
        default=["fp32"],
        help="one after another; bf16 and fp16 by autocast, fp32 without TF32",
    )
    parser.add_argument("--cudnn-benchmark", action="store_true", help="let cuDNN try its kernels")


def describe(args: argparse.Namespace) -> str:
    """The device, and what else bears on its times; sets it too. Nothing on the CPU."""
    if args.device.type == "cpu":
        return ""
    torch.backends.cudnn.benchmark = args.cudnn_benchmark
    use_tf32("fp32")
    name, cudnn = torch.cuda.get_device_name(args.device), torch.backends.cudnn.version()
    trying = "on" if args.cudnn_benchmark else "off"
    return (
        f"\n{name}, CUDA {torch.version.cuda}, cuDNN {cudnn}, cudnn.benchmark {trying}; times by "
        f"the clock, synchronised, after {WARM_UP['cuda']} runs to warm up; TF32 only where named"
    )


def now(device: torch.device) -> float:
    """Seconds; only differences mean something."""
    if device.type == "cpu":
        return time.process_time()
    torch.cuda.synchronize(device)
    return time.perf_counter()


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """For forward passes; off where all is float32."""
    half = HALVES.get(precision)
    return torch.autocast(device.type, dtype=half, enabled=half is not None)


def use_tf32(precision: str) -> None:
    """Let a GPU multiply float32 with 10 bits of mantissa, or not; backward passes too."""
    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    torch.backends.cudnn.allow_tf32 = precision == "tf32"


def warm_libraries(device: torch.device) -> None:
    """Have the workspaces made that belong to no side, those of the backward pass too."""
    layers = nn.Sequential(nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(8 * 36, 8)).to(device)
    layers(torch.ones(2, 8, 8, 8, device=device)).sum().backward()
    torch.cuda.synchronize(device)


def allocated(device: torch.device) -> int:
    """Bytes of tensors that are alive on a GPU."""
    gc.collect()
    torch.cuda.synchronize(device)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    return torch.cuda.memory_allocated(device)
