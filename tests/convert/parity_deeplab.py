"""Runners of the fixtures of the DeepLabs, their backbones and the dense CRF."""

import re
from collections.abc import Callable

import torch
from torch import Tensor

from pixelwise.convert.backbones import infer_xception, xception_rules
from pixelwise.convert.rules import invert, translate
from pixelwise.nn.backbones import build_backbone
from pixelwise.ops.crf import DenseCRF, dense_crf, dense_crf_exact
from pixelwise.ops.resize import resize
from tests.convert.parity import (
    backbone_name,
    check_all,
    convert,
    multi_grid,
    output_stride,
    rates,
    words,
)
from tests.fixtures import Fixture, fill_state

# Between the exact mean field and the lattice of the authors' library, if the fixture is silent.
LARGEST_AFTER_ONE = 0.16
LEAST_AGREEMENT = 0.95


def run_dense_crf(fixture: Fixture) -> None:
    """Ours against the brute force and against the authors' library, after every stored count."""
    given = fixture.meta["parameters"]
    probs, image = (
        torch.from_numpy(fixture.arrays["prob"]),
        torch.from_numpy(fixture.arrays["image"]),
    )
    counts = [int(m[1]) for key in fixture.arrays if (m := re.fullmatch(r"exact_(\d+)", key))]
    assert counts
    for count in counts:
        crf = DenseCRF(
            w1=given["bilateral_weight"],
            sigma_alpha=given["bilateral_sxy"],
            sigma_beta=given["bilateral_srgb"],
            w2=given["gaussian_weight"],
            sigma_gamma=given["gaussian_sxy"],
            iterations=count,
        )
        exact, fast = dense_crf_exact(probs, image, crf), dense_crf(probs, image, crf)
        brute = torch.from_numpy(fixture.arrays[f"exact_{count}"])
        assert (exact - brute).abs().max() <= 1e-4
        library = torch.from_numpy(fixture.arrays[f"pydensecrf_{count}"])
        assert (fast - library).abs().max() <= 1e-3  # float32 noise grows with the iterations
        largest, agreement = apart(fixture, count)
        if count == 1:
            assert (fast - exact).abs().max() <= largest
        assert (fast.argmax(0) == exact.argmax(0)).float().mean() >= agreement


def apart(fixture: Fixture, count: int) -> tuple[float, float]:
    """How far the library is from the brute force, which other parameters move: as measured."""
    said = fixture.meta.get("agreement", {}).get(str(count), {})
    largest = said.get("max_abs_diff_exact_vs_pydensecrf", LARGEST_AFTER_ONE)
    return largest + 2e-3, said.get("argmax_agreement", LEAST_AGREEMENT) - 2e-3


@torch.no_grad()
def run_deeplabv3(fixture: Fixture) -> None:
    origin = fixture.name.split("_")[0]
    mobile = "mobilenet" in fixture.name
    settings = {
        "output_stride": output_stride(fixture, 16 if mobile else 8),
        "aspp_rates": rates(fixture, (12, 24, 36)),
        "multi_grid": multi_grid(fixture, (1, 1, 1)),
        **(backbone_name(fixture) if origin == "smp" else {}),
    }
    system = convert(fixture, origin, "deeplabv3", **settings).system
    aligned = system.cfg.align_corners
    for tag, images in fixture.inputs().items():
        size = images.shape[-2:]
        logits = system(images).logits
        whole = resize(logits, size, align_corners=aligned)
        stages = {"decode": logits, "logits": whole, "out": whole}
        if system.auxiliary is not None:
            auxiliary = system.auxiliary(system.backbone(images)[0])
            stages["aux"] = resize(auxiliary, size) if origin == "torchvision" else auxiliary
        check_all(fixture, stages, tag)


@torch.no_grad()
def run_deeplab_pytorch(fixture: Fixture) -> None:
    """One checkpoint at the output stride of each input's tag, with the rates stated for it."""
    name = "deeplabv3plus" if "deeplabv3plus" in fixture.name else "deeplabv3"
    for tag, images in fixture.inputs().items():
        found = re.search(r"os(\d+)", tag)
        stride = int(found[1]) if found else output_stride(fixture, 16)
        stated = re.search(rf"output stride {stride}: rates (\d+(?:, ?\d+)*)", words(fixture))
        scaled = tuple(96 // stride * n for n in (1, 2, 3))  # 6, 12, 18 at stride 16
        given = tuple(int(n) for n in stated[1].split(",")) if stated else rates(fixture, scaled)
        grid = multi_grid(fixture, (1, 2, 4))
        settings = {"output_stride": stride, "aspp_rates": given, "multi_grid": grid}
        logits = convert(fixture, "deeplab-pytorch", name, **settings).system(images).logits
        if name == "deeplabv3plus":  # it alone ends at the size of the image
            logits = resize(logits, images.shape[-2:])
        check_all(fixture, {"logits": logits}, tag)


def run_deeplabv3plus(fixture: Fixture) -> None:
    origin = fixture.name.split("_")[0]
    settings = {
        "output_stride": output_stride(fixture, 8 if origin == "mmseg" else 16),
        "aspp_rates": rates(fixture, (12, 24, 36)),
        "multi_grid": multi_grid(fixture, (1, 1, 1)),
        **(backbone_name(fixture) if origin == "smp" else {}),
    }
    system = convert(fixture, origin, "deeplabv3plus", **settings).system
    for tag, images in fixture.inputs().items():
        with torch.no_grad():
            raw = system(images)
            stages = {
                "decode": raw.logits,
                "logits": resize(
                    raw.logits, images.shape[-2:], align_corners=system.cfg.align_corners
                ),
            }
            if system.auxiliary is not None:
                stages["aux"] = system.auxiliary(system.backbone(images)[1])
        check_all(fixture, stages, tag)


def run_xception(fixture: Fixture) -> None:
    state = fill_state(fixture.meta)
    stride = output_stride(fixture, 32)
    name = infer_xception(state)
    backbone = build_backbone(
        name,
        style="timm",
        levels=(1, 2, 3, 4, 5),
        output_stride=stride,
        in_channels=state["stem.0.conv.weight"].shape[1],
    )
    translation = translate(xception_rules(), state, backbone.state_dict())
    backbone.load_state_dict(translation.state)
    dropped = sum(state[key].numel() for key in translation.dropped)
    ours = sum(p.numel() for p in backbone.parameters())
    assert ours + dropped == fixture.meta["parameters"]
    assert set(invert(xception_rules(), translation.state)) == set(state) - set(translation.dropped)
    outputs: dict[int, Tensor] = {}
    for i, block in enumerate(backbone.blocks):
        block.register_forward_hook(lambda _, __, out, i=i: outputs.update({i: out[0]}))
    for tag, images in fixture.inputs().items():
        with torch.no_grad():
            maps = backbone.eval()(images)
        stages = {f"block{i}": out for i, out in outputs.items()}
        stages |= {"stem": maps[0], "low_level_relu": maps[1], "features": maps[-1]}
        check_all(fixture, stages, tag)


RUNNERS: dict[str, Callable[[Fixture], None]] = {
    "deeplab_pytorch_deeplabv3": run_deeplab_pytorch,
    "mmseg_deeplabv3_": run_deeplabv3,
    "mmseg_deeplabv3plus_": run_deeplabv3plus,
    "smp_deeplabv3_": run_deeplabv3,
    "smp_deeplabv3plus_": run_deeplabv3plus,
    "timm_xception": run_xception,
    "torchvision_deeplabv3_": run_deeplabv3,
    "dense_crf_": run_dense_crf,
}
