"""The dense CRF, exact and on the lattice, in one run.

    python benchmarks/crf.py [--exact 320] [--fast 320 500 1000] [--classes 21] [--iterations 10]

Times are CPU seconds of this process on one thread, the kernels' preparation included. The picture
is made of smooth colours, edges and grain; `--picture FILE` takes another. The exact one needs a
pass over all pairs of pixels per iteration and one for the normalisation; at 320 x 320 that is
minutes, so `--exact-iterations` may do with fewer and compare the two at that number.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pixelwise.ops.crf import PRESETS, DenseCRF, dense_crf, dense_crf_exact


def picture(side: int) -> Tensor:
    """[side, side, 3] uint8: gradients, 40 discs of one colour each, and noise."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:side, :side] / side
    image = np.stack([90 + 60 * x, 110 + 50 * y, 100 + 40 * np.sin(5 * x * y)], -1)
    for _ in range(40):
        cx, cy, r = rng.uniform(0, 1), rng.uniform(0, 1), rng.uniform(0.02, 0.15)
        image[(x - cx) ** 2 + (y - cy) ** 2 < r * r] = rng.uniform(0, 255, 3)
    noisy = image + rng.normal(0, 4, image.shape)
    return torch.from_numpy(noisy.clip(0, 255).astype(np.uint8))


def scene(side: int, classes: int, path: Path | None) -> tuple[Tensor, Tensor]:
    """Probabilities as a network of stride 8 would give them, and the picture."""
    if path is None:
        image = picture(side)
    else:
        with Image.open(path) as opened:
            pixels = opened.convert("RGB").resize((side, side), Image.Resampling.BICUBIC)
            image = torch.from_numpy(np.array(pixels))
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(1, classes, side // 8, side // 8, generator=generator)
    large = torch.nn.functional.interpolate(logits, size=(side, side), mode="bilinear")
    return large[0].softmax(0), image


def timed(infer, probs: Tensor, image: Tensor, crf: DenseCRF) -> tuple[float, Tensor]:
    start = time.process_time()
    result = infer(probs, image, crf)
    return time.process_time() - start, result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--exact", type=int, nargs="*", default=[320])
    parser.add_argument("--fast", type=int, nargs="*", default=[320, 500, 1000])
    parser.add_argument("--classes", type=int, default=21)
    parser.add_argument("--iterations", type=int, default=10)
    parser.add_argument("--exact-iterations", type=int, default=None)
    parser.add_argument("--preset", choices=PRESETS, default="deeplabv2_resnet101")
    parser.add_argument("--picture", type=Path, default=None)
    args = parser.parse_args()
    torch.set_num_threads(1)
    values = dict(vars(PRESETS[args.preset]))
    print(f"torch {torch.__version__}, one thread, {args.classes} classes, {args.preset}")
    for side in args.fast:
        crf = DenseCRF(**{**values, "iterations": args.iterations})
        seconds, _ = timed(dense_crf, *scene(side, args.classes, args.picture), crf)
        print(f"fast  {side:5} x {side:<5} {crf.iterations:3} iterations {seconds:9.2f} s")
    for side in args.exact:
        count = args.exact_iterations or args.iterations
        crf = DenseCRF(**{**values, "iterations": count})
        probs, image = scene(side, args.classes, args.picture)
        fast, a = timed(dense_crf, probs, image, crf)
        exact, b = timed(dense_crf_exact, probs, image, crf)
        same = (a.argmax(0) == b.argmax(0)).float().mean()
        print(f"fast  {side:5} x {side:<5} {count:3} iterations {fast:9.2f} s")
        print(
            f"exact {side:5} x {side:<5} {count:3} iterations {exact:9.2f} s  "
            f"= {exact / fast:.0f} times the fast one; labels agree on {same:.1%}"
        )


if __name__ == "__main__":
    main()
