"""Forward passes against torchvision and segmentation_models.pytorch, both in one run.

    pip install --no-deps --target peers segmentation-models-pytorch
    PYTHONPATH=peers python benchmarks/semantic.py [NAME ...] [--size 512] [--rounds 9]
        [--fast] [--compile] [--device cpu] [--precision fp32]

Each pair is one architecture with the same weights: theirs is built, ours is converted from it, and
the logits of both, resized to the picture as theirs are, must agree. Then both take turns on one
picture. Times are CPU milliseconds of this process over all threads, so that a busy machine
disturbs them little; the ratio is the median over rounds of theirs / ours, above 1 where ours is
faster, with the quartiles. `--fast` adds ours in channels_last and then with bf16; `--compile` adds
both of these compiled by torch, which takes minutes. Peers that are not installed, and systems that
have no converter, are left out and named.

On one thread (`--threads 1`) torch gives 1x1 convolutions to its own product of matrices, but
dilated ones to oneDNN, which is faster on deep maps; segmentation_models.pytorch dilates its 1x1
convolutions together with the 3x3 ones. From two threads on all of them go to oneDNN.

On a GPU (`--device cuda`) times are by the clock, from a picture that lies there to logits that do.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # a thread that waits takes no processor time

import argparse
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec

import torch
from devices import WARM_UP, add_options, autocast, describe, now, use_tf32
from torch import Tensor, nn

from pixelwise import convert
from pixelwise.errors import PixelwiseError
from pixelwise.ops.resize import resize

CLASSES = 21
FAST = ("channels_last", "+ bf16")
COMPILED = ("compiled", "+ bf16, comp.")
AGREEMENT = {"cpu": 1e-4, "cuda": 1e-3}  # of the largest logit

Forward = Callable[[Tensor], Tensor]  # [B, 3, H, W] → [B, K, H, W]


@dataclass(frozen=True)
class Pair:
    """One architecture.

    Args:
        name:   row of SYSTEMS.
        origin: whose it is, as in `convert`.
        build:  makes theirs with random weights.
    """

    name: str
    origin: str
    build: Callable[[], nn.Module]


def torchvision_net(name: str) -> nn.Module:
    from torchvision.models import segmentation

    return getattr(segmentation, name)(
        weights=None, weights_backbone=None, num_classes=CLASSES, aux_loss=False
    )


def smp_net(name: str, encoder: str) -> nn.Module:
    import segmentation_models_pytorch as smp

    return getattr(smp, name)(encoder, encoder_weights=None, classes=CLASSES)


def pairs() -> list[Pair]:
    found = [
        Pair(name, "torchvision", lambda name=name: torchvision_net(name))
        for name in ("fcn_resnet50", "deeplabv3_resnet50", "deeplabv3_mobilenet_v3_large")
    ]
    for name, theirs in (
        ("deeplabv3", "DeepLabV3"),
        ("deeplabv3plus", "DeepLabV3Plus"),
        ("pspnet", "PSPNet"),
        ("unet", "Unet"),
    ):
        for encoder in ("resnet34", "resnet50"):
            found.append(
                Pair(f"{name} {encoder}", "smp", lambda t=theirs, e=encoder: smp_net(t, e))
            )
    return found


def their_logits(net: nn.Module, images: Tensor) -> Tensor:
    found = net(images)
    return found["out"] if isinstance(found, dict) else found


def our_logits(net: nn.Module, images: Tensor) -> Tensor:
    logits = net(images).logits
    if logits.shape[2:] == images.shape[2:]:
        return logits
    size = (images.shape[2], images.shape[3])
    return resize(logits, size, align_corners=getattr(net.cfg, "align_corners", False))


def prepare(pair: Pair, images: Tensor) -> tuple[nn.Module, nn.Module]:
    """Theirs and ours with the same weights.

    Raises:
        PixelwiseError: no such system or converter, or the outputs differ.
    """
    torch.manual_seed(0)
    theirs = pair.build().eval()
    ours = convert.load(theirs.state_dict(), origin=pair.origin, name=pair.name.split()[0])
    theirs, ours = theirs.to(images.device), ours.to(images.device)
    use_tf32("fp32")
    a, b = their_logits(theirs, images), our_logits(ours, images)
    difference = float((a - b).abs().max() / a.abs().max())
    if difference > AGREEMENT[images.device.type]:
        raise PixelwiseError(f"logits differ by {difference:.1e} of the largest")
    return theirs, ours


def seconds(forward: Forward, images: Tensor) -> float:
    start = now(images.device)
    forward(images)
    return now(images.device) - start


def turns(first: Forward, second: Forward, images: Tensor, rounds: int) -> list[list[float]]:
    """Seconds of both in every round; who begins alternates."""
    times: list[list[float]] = [[], []]
    for round_ in range(-WARM_UP[images.device.type], rounds):
        order = (0, 1) if round_ % 2 else (1, 0)
        for i in order:
            spent = seconds((first, second)[i], images)
            if round_ >= 0:
                times[i].append(spent)
    return times


def wanted_forms(args: argparse.Namespace) -> tuple[str, ...]:
    return (*(FAST if args.fast else ()), *(COMPILED if args.compile else ()))


def fast_forms(net: nn.Module) -> dict[str, Forward]:
    """Ours, already in channels_last, in the forms that cost a user one line each."""

    def eager(images: Tensor) -> Tensor:
        return our_logits(net, images.contiguous(memory_format=torch.channels_last))

    def bf16(images: Tensor) -> Tensor:
        with autocast(images.device, "bf16"):
            return eager(images)

    compiled, both = torch.compile(eager), torch.compile(bf16)
    return dict(zip((*FAST, *COMPILED), (eager, bf16, compiled, both), strict=True))


def compare(
    pair: Pair, nets: tuple[nn.Module, nn.Module], images: Tensor, precision: str, rounds: int
) -> None:
    use_tf32(precision)

    def theirs(x: Tensor) -> Tensor:
        with autocast(x.device, precision):
            return their_logits(nets[0], x)

    def ours(x: Tensor) -> Tensor:
        with autocast(x.device, precision):
            return our_logits(nets[1], x)

    a, b = turns(theirs, ours, images, rounds)
    ratios = [x / y for x, y in zip(a, b, strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    is_plain = images.device.type == "cpu" and precision == "fp32"
    name = pair.name if is_plain else f"{pair.name} {precision}"
    digits = 0 if images.device.type == "cpu" else 2
    print(
        f"{name:29} {pair.origin:12} {1e3 * statistics.median(a):8.{digits}f} "
        f"{1e3 * statistics.median(b):8.{digits}f}   {middle:5.3f}  {low:.3f}..{high:.3f}",
        end="",
        flush=True,
    )


def report(pair: Pair, images: Tensor, args: argparse.Namespace) -> None:
    theirs, ours = prepare(pair, images)
    for i, precision in enumerate(args.precision):
        print("\n" if i else "", end="")
        compare(pair, (theirs, ours), images, precision, args.rounds)
    if names := wanted_forms(args):
        del theirs
        forms = fast_forms(ours.to(memory_format=torch.channels_last))
        for forward in (forms[name] for name in names):
            forward(images)  # compiled, packed
            best = statistics.median(seconds(forward, images) for _ in range(args.rounds // 2 + 1))
            print(f" {1e3 * best:13.0f}", end="", flush=True)
    print()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="begin of the pairs' names; default all")
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--fast", action="store_true")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--batch", type=int, default=1, help="pictures at a time")
    add_options(parser)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    shape = (args.batch, 3, args.size, args.size)
    images = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(args.device)
    several = "" if args.batch == 1 else f"{args.batch} x "
    print(
        f"torch {torch.__version__}, {args.threads} threads, {several}{args.size} x {args.size}, "
        f"median of {args.rounds}{describe(args)}"
    )
    head = f"{'':29} {'origin':12} {'theirs':>8} {'ours ms':>8}   ratio  quartiles   "
    print(head + "".join(f" {form:>13}" for form in wanted_forms(args)))
    for pair in pairs():
        if args.names and not pair.name.startswith(tuple(args.names)):
            continue
        if pair.origin == "smp" and find_spec("segmentation_models_pytorch") is None:
            print(f"{pair.name:29} left out: segmentation-models-pytorch is not installed")
            continue
        try:
            with torch.inference_mode():
                report(pair, images, args)
        except PixelwiseError as error:
            print(f"{pair.name:29} left out: {error}")


if __name__ == "__main__":
    main()
