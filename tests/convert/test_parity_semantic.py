"""What upstream implementations of semantic systems compute, reproduced through the converters.

`RUNNERS` maps a fixture's name prefix to the function that checks every output it stores; settings
that shapes cannot tell come from the fixture's json. A new depth, class count, size or seed runs
without new code. A fixture that neither table knows fails.
"""

import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from pixelwise.convert import import_checkpoint
from pixelwise.convert.backbones import infer_xception, xception_rules
from pixelwise.convert.rules import invert, translate
from pixelwise.nn.backbones import build_backbone
from pixelwise.ops.resize import resize
from tests.convert import parity_bisenet_efficientfcn
from tests.convert.parity_deeplab import run_dense_crf
from tests.fixtures import Fixture, fill_state, fixture_params, load_fixture

TOLERANCE = 1e-4  # of the stored maximum


def compare(fixture: Fixture, key: str, ours: Tensor) -> None:
    """max|difference| <= 1e-4 max|stored|; `Fixture.compare` is relative to the spread."""
    spread = fixture.meta["outputs"][key]["std"]
    fixture.compare(key, ours, rtol=TOLERANCE * fixture.meta["outputs"][key]["max_abs"] / spread)


def output_stride(fixture: Fixture, default: int) -> int:
    """As the json states it in words, or an "os8" or "d8" in the name."""
    text = " ".join(fixture.meta["configuration"])
    found = re.search(r"output[_ ]stride[ =:]*(\d+)", text) or re.search(
        r"_(?:os|d)(8|16|32)(?:_|$)", fixture.name
    )
    return int(found[1]) if found else default


def rates(fixture: Fixture, default: tuple[int, ...]) -> tuple[int, ...]:
    """ASPP's dilations as the json states them; the leading 1 of mmseg is the 1x1 branch."""
    text = " ".join(fixture.meta["configuration"])
    found = re.search(r"ASPP\D*?(?:dilations )?\(((?:\d+, ?)+\d+)\)", text) or re.search(
        r"dilations \(((?:\d+, ?)+\d+)\), low", text
    )
    if not found:
        return default
    return tuple(n for n in (int(part) for part in found[1].split(",")) if n > 1)


def backbone_name(fixture: Fixture) -> dict[str, str]:
    """smp's "tu-NAME" encoders of timm do not say in their keys what they are."""
    found = re.search(r"_tu-(\w+?)_cls", fixture.name)
    return {"backbone": found[1]} if found else {}


def run_deeplabv3plus(fixture: Fixture) -> None:
    origin = fixture.name.split("_")[0]
    state = fill_state(fixture.meta)
    settings = {
        "output_stride": output_stride(fixture, 8 if origin == "mmseg" else 16),
        "aspp_rates": rates(fixture, (12, 24, 36)),
        **(backbone_name(fixture) if origin == "smp" else {}),
    }
    imported = import_checkpoint(state, origin=origin, name="deeplabv3plus", **settings)
    system = imported.system
    assert sum(p.numel() for p in system.parameters()) == fixture.meta["parameters"]
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


def check_all(fixture: Fixture, stages: dict[str, Tensor], tag: str) -> None:
    """Every stored output of this input (their names may begin or end with its tag) is compared."""
    wanted = [key for key in fixture.meta["outputs"] if tag in key]
    assert wanted, f"{fixture.name} stores nothing for the input {tag!r}"
    for key in wanted:
        stage = key.replace(tag, "").strip("_") if tag else key
        assert stage in stages, f"{fixture.name} stores {key!r}, which nothing here computes"
        compare(fixture, key, stages[stage])


RUNNERS: dict[str, Callable[[Fixture], None]] = {
    **parity_bisenet_efficientfcn.RUNNERS,
    "mmseg_deeplabv3plus_": run_deeplabv3plus,
    "smp_deeplabv3plus_": run_deeplabv3plus,
    "timm_xception": run_xception,
    "dense_crf_": run_dense_crf,
}

# Prefixes of fixtures that belong to systems which are not built yet, or to another test.
COMING = {
    "caffe_layers_fcn_": "FCN",
    "caffe_layers_deeplab_": "DeepLab V1",
    "zijundeng_fcn": "FCN",
    "torchvision_fcn_": "FCN",
    "mmseg_fcn_": "FCN",
    "deeplab_pytorch_deeplabv2_": "DeepLab V2",
    "deeplab_pytorch_deeplabv3_": "DeepLab V3",
    "torchvision_deeplabv3_": "DeepLab V3",
    "mmseg_deeplabv3_": "DeepLab V3",
    "semseg_pspnet": "PSPNet",
    "mmseg_pspnet_": "PSPNet",
    "smp_pspnet_": "PSPNet",
    "mmseg_unet_": "U-Net",
    "smp_unet_": "U-Net",
    "zijundeng_gcn_": "GCN",
}
ELSEWHERE = {
    "losses_semantic": "tests/losses/test_pixel.py",
    "metrics_semantic": "tests/metrics",
    "tables": "tables of palettes and schedules",
}


def matching(table: dict, name: str) -> list:
    return [value for prefix, value in table.items() if name.startswith(prefix)]


@pytest.mark.parametrize("path", fixture_params("semantic"))
def test_parity(path) -> None:
    if path.stem in ELSEWHERE or load_fixture(path).kind != "semantic":
        pytest.skip(f"tested in {ELSEWHERE.get(path.stem, 'the tests of instance systems')}")
    runners = matching(RUNNERS, path.stem)
    if not runners:
        coming = matching(COMING, path.stem)
        assert coming, f"no runner knows the fixture {path.stem}"
        pytest.skip(f"{coming[0]} is not built yet")
    runners[0](load_fixture(path))


def test_no_prefix_is_in_both_tables() -> None:
    for prefix in RUNNERS:
        assert not matching(COMING, prefix)
