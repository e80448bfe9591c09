"""The light real-time systems beside ultralytics' yolo26n-seg on a CPU, both in one run.

    pip install --no-deps --target peers ultralytics ultralytics-thop opencv-python-headless
    PYTHONPATH=peers python benchmarks/realtime.py [NAME ...] [--size 480x640] [--rounds 15]
        [--threads 2] [--objects 20] [--bf16] [--onnx]

End to end: a picture as an array of bytes goes in; out come our run lengths, and their tensor of
masks at the size of the picture. Every network sees the picture at its own size. Weights are
random, so both sides are set to find `--objects` objects of 80 classes: the class biases of ours
are moved until so many score 0.3, their confidence is put below their score of that rank. Our
masks are noise then, whose run lengths cost more than those of real ones.

The two take turns. Times are milliseconds by the clock and, in brackets, of processor time over
all threads, which a busy machine disturbs less; the ratio is the median over rounds of theirs /
ours, above 1 where ours is faster, with the quartiles. "prepare", "network" and "decode" are the
parts of ours by the clock.

`--bf16` is ours in mixed precision, beside theirs in float32, for they have no such option on a
CPU. `--onnx` is both exported, in ONNX Runtime, with the same steps before and after; both get the
same options, and threads that sleep while they wait. Where ultralytics is not installed (it is
AGPL, and no dependency of this package), ours run alone.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # a thread that waits takes no processor time

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pixelwise.data.transforms import prepare_image
from pixelwise.export import Passport, export_onnx
from pixelwise.nn.detections import drop_faint
from pixelwise.predict import Segmenter
from pixelwise.result import Result
from pixelwise.spec import ResizeRule
from pixelwise.systems import create, find
from pixelwise.types import InstancePrediction, Size

ROWS = ("yolact_rt", "decoupled_solo_rt", "yolact_lite0", "decoupled_solo_lite0")
PEER = "yolo26n-seg"
K = 80
SCORE = 0.3  # from which on a detection counts
CONTRAST = 20.0  # of our class logits: as after training, few places score 0.05

Pixels = np.ndarray  # [H, W, 3] uint8
Work = Callable[[], int]  # a picture's masks are made; how many


def picture(size: Size) -> Pixels:
    """Patches of 8 pixels in random colours, so that neighbouring places look different."""
    g = torch.Generator().manual_seed(1)
    patches = torch.randint(0, 256, (1, 3, size[0] // 8, size[1] // 8), generator=g)
    fine = nn.functional.interpolate(patches.float(), size=size, mode="nearest")[0]
    return fine.byte().permute(1, 2, 0).contiguous().numpy()


def our_segmenter(name: str, pixels: Pixels, objects: int) -> Segmenter:
    torch.manual_seed(0)
    spec = replace(find(name).input, resize=ResizeRule(pad_divisor=32))
    segmenter = Segmenter(
        create(name, num_classes=K),
        name=name,
        classes=[f"class {i}" for i in range(K)],
        input=spec,
        task="instance",
        device="cpu",
    )
    aim(segmenter, pixels, objects)
    return segmenter


@torch.no_grad()
def aim(segmenter: Segmenter, pixels: Pixels, objects: int) -> None:
    """Move the class biases until about so many objects are found."""
    system = segmenter.system
    is_yolact = hasattr(system, "protonet")
    conv = system.head.outputs["classify"] if is_yolact else system.categories.classify
    masks = [] if is_yolact else [*system.masks.columns, *system.masks.rows]
    images = prepare_image(pixels, segmenter.input)[0][None]
    spread([conv], lambda: system(images), by=CONTRAST)
    if is_yolact:  # boxes near their anchors, masks that are half full
        spread([system.head.outputs["regress"]], lambda: system(images), by=1.0)
        spread([system.head.outputs["coefficients"]], lambda: system(images), by=1.0)
    else:
        spread(masks, lambda: whole_masks(system, images), by=2.0)
    conv.bias.zero_()
    for one in masks:
        one.bias.fill_(-2.0)  # a mask covers 2 % of the picture instead of 25 %
    # YOLACT has a class for the background, the last one of each anchor; SOLO has none.
    bias = conv.bias[-system.cfg.anchors_per_cell :] if is_yolact else conv.bias

    def found(shift: float) -> int:
        bias.fill_(-shift if is_yolact else shift)
        return len(segmenter.predict(pixels, score_thresh=SCORE).instances)

    high = -100.0  # nothing is found there
    while found(high) < objects and high < 150:
        high += 10
    low = high - 10
    for _ in range(12):
        middle = (low + high) / 2
        low, high = (middle, high) if found(middle) < objects else (low, middle)
    found(high)


def whole_masks(system: Any, images: Tensor) -> None:
    """All columns and rows of decoupled SOLO; a prediction computes those of few cells."""
    maps = system.masks(system.neck(system.backbone(images)))
    for features, columns, rows in zip(maps, system.masks.columns, system.masks.rows, strict=True):
        columns(features[0])
        rows(features[-1])


@torch.no_grad()
def spread(convs: list[nn.Conv2d], run: Callable[[], object], *, by: float) -> None:
    """Scale convolutions so that their outputs in a run have this standard deviation."""
    outputs: dict[nn.Module, list[Tensor]] = {conv: [] for conv in convs}
    hooks = [
        conv.register_forward_hook(lambda module, args, out: outputs[module].append(out.flatten()))
        for conv in convs
    ]
    run()
    for conv, hook in zip(convs, hooks, strict=True):
        hook.remove()
        if outputs[conv]:
            conv.weight *= by / torch.cat(outputs[conv]).std()


def ours(
    segmenter: Segmenter, pixels: Pixels, times: list[dict[str, float]], *, bf16: bool
) -> Work:
    def work() -> int:
        with torch.autocast("cpu", torch.bfloat16) if bf16 else nullcontext():
            result: Result = segmenter.predict(pixels, score_thresh=SCORE)
        times.append(dict(result.times))
        return len(result.instances)

    return work


def our_runtime(segmenter: Segmenter, pixels: Pixels, folder: Path) -> Work:
    """The exported network in ONNX Runtime, between our own preparation and decoding."""
    import onnxruntime

    system, spec = segmenter.system, segmenter.input
    example = prepare_image(pixels, spec)[0][None]
    passport = Passport(name=segmenter.name, task="instance", classes=segmenter.classes, input=spec)
    path = export_onnx(system, folder / "ours.onnx", example, passport=passport, dynamic="none")
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    with torch.no_grad():
        kind = type(system(example))

    def work() -> int:
        image, size = prepare_image(pixels, spec)
        outputs = session.run(None, {"images": image[None].numpy()})
        raw = kind(*(torch.from_numpy(value) for value in outputs))
        found: InstancePrediction = system.decode(drop_faint(raw, SCORE), [size])[0]
        return len(found.select(found.scores >= SCORE))

    return work


def share_options(threads: int) -> None:
    """Give all sessions of ONNX Runtime so many threads, which sleep while they wait."""
    import onnxruntime

    make = onnxruntime.InferenceSession

    def session(path: str, sess_options: Any = None, **kwargs: Any) -> Any:
        options = sess_options or onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        return make(path, options, **kwargs)

    onnxruntime.InferenceSession = session  # theirs makes its own


def theirs(pixels: Pixels, objects: int, *, folder: Path | None = None) -> Work:
    """Their network, or where a folder is named its ONNX file, behind their own interface."""
    from ultralytics import YOLO

    torch.manual_seed(0)
    options = {"imgsz": pixels.shape[:2], "verbose": False, "device": "cpu"}
    model = YOLO(f"{PEER}.yaml")
    flipped = torch.from_numpy(pixels[..., ::-1].copy())  # it takes arrays for BGR
    settle(model.model, flipped.permute(2, 0, 1)[None].float() / 255)
    if folder is not None:
        model.save(folder / "theirs.pt")
        model = YOLO(folder / "theirs.pt")
        path = model.export(format="onnx", imgsz=pixels.shape[:2], simplify=False, device="cpu")
        model = YOLO(path, task="segment")
    every = model.predict(pixels, conf=1e-7, **options)[0].boxes.conf.sort(descending=True).values
    conf = float(every[objects - 1] + every[objects]) / 2

    def work() -> int:
        (found,) = model.predict(pixels, conf=conf, **options)
        return 0 if found.masks is None else len(found.masks)

    return work


@torch.no_grad()
def settle(network: nn.Module, images: Tensor) -> None:
    """Take the picture's statistics into the batch norms: else signals die on their way."""
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
    network.train()(images)
    network.eval()
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    convs = [m for m in network.modules() if isinstance(m, nn.Conv2d)]
    classifiers = [c for c in convs if c.out_channels == K and c.bias is not None]
    spread(classifiers, lambda: network(images), by=1.5)


def in_turns(works: list[Work], rounds: int) -> Tensor:
    """[rounds, sides, 2] milliseconds by the clock and of the processor; who begins alternates."""
    times = torch.zeros(rounds, len(works), 2)
    for round_ in range(-2, rounds):  # two to warm up
        for i in range(len(works)) if round_ % 2 else reversed(range(len(works))):
            wall, spent = time.perf_counter(), time.process_time()
            works[i]()
            taken = torch.tensor([time.perf_counter() - wall, time.process_time() - spent])
            if round_ >= 0:
                times[round_, i] = 1e3 * taken
    return times


def show(name: str, works: list[Work], rounds: int) -> None:
    found = [work() for work in works]
    times = in_turns(works, rounds)
    middle = times.median(dim=0).values.tolist()  # [sides, 2]
    cells = [f"{wall:6.1f} ({spent:.1f})" for wall, spent in middle]
    line = f"{name:28} {'/'.join(map(str, found)):>8} " + "".join(f"{c:>17}" for c in cells)
    if len(works) == 2:
        for clock in (0, 1):
            ratios = (times[:, 0, clock] / times[:, 1, clock]).tolist()
            low, median, high = statistics.quantiles(ratios, n=4, method="inclusive")
            line += f"   {median:5.2f}  {low:.2f}..{high:.2f}"
    print(line, flush=True)


def compare(name: str, pixels: Pixels, peer: dict[str, Work], args: argparse.Namespace) -> None:
    segmenter = our_segmenter(name, pixels, args.objects).fuse()
    forms = {"": False} | ({" bf16": True} if args.bf16 else {})
    for label, bf16 in forms.items():
        parts: list[dict[str, float]] = []
        work = ours(segmenter, pixels, parts, bf16=bf16)
        show(name + label, [*([peer["eager"]] if peer else []), work], args.rounds)
        stages = ("prepare", "network", "decode")
        shares = [statistics.median(p[s] for p in parts[2:]) for s in stages]
        print("    " + ", ".join(f"{s} {v:.1f}" for s, v in zip(stages, shares, strict=True)))
    if args.onnx:
        with tempfile.TemporaryDirectory() as folder:
            work = our_runtime(segmenter, pixels, Path(folder))
            show(f"{name} ONNX", [*([peer["onnx"]] if peer else []), work], args.rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help=f"rows; default {', '.join(ROWS)}")
    parser.add_argument("--size", default="480x640", help="height x width of the picture")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--objects", type=int, default=20)
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--onnx", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.onnx:
        share_options(args.threads)
    height, width = (int(part) for part in args.size.split("x"))
    pixels = picture((height, width))
    print(f"torch {torch.__version__}, {args.threads} threads, {args.size}, {args.rounds} rounds")
    with tempfile.TemporaryDirectory() as folder:
        peer: dict[str, Work] = {}
        if find_spec("ultralytics") is None:
            print(f"{PEER} is left out: ultralytics is not installed")
        else:
            peer["eager"] = theirs(pixels, args.objects)
            if args.onnx:
                peer["onnx"] = theirs(pixels, args.objects, folder=Path(folder))
        torch.set_num_threads(args.threads)  # importing theirs changes it
        head = [*([PEER] if peer else []), "ours ms (CPU)"]
        ratios = "   ratio  quartiles    CPU  quartiles" if peer else ""
        print(f"{'':28} {'objects':>8} " + "".join(f"{h:>17}" for h in head) + ratios)
        for name in args.names or ROWS:
            compare(name, pixels, peer, args)


if __name__ == "__main__":
    main()
