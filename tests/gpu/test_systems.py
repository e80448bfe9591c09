"""Every row of the table at tiny width: the same numbers on the GPU as on the CPU.

In float64, so that neither rounding nor the choice of a convolution's algorithm decides which box
comes first; parts that systems always compute in float32 are compared as such.
"""

import pytest
import torch
from torch import nn

from pixelwise.types import ImageSize
from tests.gpu.device import DEVICE, GPU, assert_near, assert_same_predictions
from tests.systems.test_contract import (
    SIDE,
    SYSTEMS,
    build,
    distinct_rows,
    picture,
    target,
    total,
)

pytestmark = GPU

ROWS = distinct_rows()
SIZES = [
    ImageSize(original=(81, 47), content=(64, 37), input=(SIDE, SIDE)),
    ImageSize(original=(20, 33), content=(39, 64), input=(SIDE, SIDE)),
]
TOL = 1e-5  # of the largest value; float64 leaves only what is computed in float32 in between


def spread_out(name: str, *, dtype: torch.dtype = torch.float64) -> nn.Module:
    """A system whose scores differ: heads start with tiny weights, and then all are almost equal.

    Nothing is dropped at random.
    """
    system = build(name)
    for module in system.modules():
        if isinstance(module, nn.Dropout | nn.Dropout2d):
            module.p = 0.0
        if isinstance(module, nn.Conv2d | nn.Linear):
            weight = module.weight.data
            wanted = weight[0].numel() ** -0.5
            if weight.std() < 0.5 * wanted:
                weight.normal_(0, wanted)
            if module.bias is not None:
                module.bias.data.normal_(0, 0.1)
    return system.to(dtype)


def images(dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.stack([picture(1), picture(2)]).to(dtype)


def targets(name: str, device: torch.device | str) -> list:
    return [target(name, kind).to(device) for kind in ("normal", "crowded")]


@pytest.mark.parametrize("name", ROWS)
@torch.no_grad()
def test_forward_and_decode(name):
    system = spread_out(name).eval()
    expected = system(images())
    expected_predictions = system.decode(expected, SIZES)
    system.to(DEVICE)
    found = system(images().to(DEVICE))
    for leaf in found:
        assert leaf.device.type == DEVICE.type
    assert_near(found, expected, tol=TOL, what=name)
    predictions = system.decode(found, SIZES)
    assert_same_predictions(predictions, expected_predictions, tol=TOL, pixels=3)
    for prediction in predictions:
        assert prediction.labels.device.type == "cpu"


@pytest.mark.parametrize("name", [n for n in ROWS if SYSTEMS[n].task == "semantic"])
@torch.no_grad()
def test_logits_in_float32(name):
    """The layout that prediction on a GPU uses, the one for tensor cores, and an odd size."""
    system = build(name).eval()
    x = torch.randn(2, 3, 75, 53, generator=torch.Generator().manual_seed(3))
    expected = system(x)
    system.to(DEVICE)
    x = x.to(DEVICE)
    assert_near(system(x), expected, tol=1e-4, what="contiguous")
    last = x.contiguous(memory_format=torch.channels_last)
    assert_near(system(last), expected, tol=1e-4, what="channels last")


@pytest.mark.parametrize("name", ROWS)
def test_losses_and_gradients(name, monkeypatch):
    """Samplers draw the first ones here: generators of different devices draw different numbers."""
    monkeypatch.setattr(
        torch, "randperm", lambda n, device=None, **_: torch.arange(n, device=device)
    )
    system = spread_out(name).train()
    expected = system.loss(images(), targets(name, "cpu"))
    total(expected).backward()
    wanted = {n: p.grad for n, p in system.named_parameters() if p.grad is not None}
    other = spread_out(name).train().to(DEVICE)
    found = other.loss(images().to(DEVICE), targets(name, DEVICE))
    for value in found.values():
        assert value.device.type == DEVICE.type
    total(found).backward()
    silent = [n for n, p in other.named_parameters() if p.requires_grad and p.grad is None]
    assert not silent
    assert_near(found, expected, tol=TOL, what=name)
    scale = max(float(g.abs().max()) for g in wanted.values())
    gradients = {n: p.grad for n, p in other.named_parameters() if p.grad is not None}
    worst = {n: float((gradients[n].cpu() - g).abs().max()) / scale for n, g in wanted.items()}
    bad = {n: f"{v:.2g}" for n, v in worst.items() if not v <= TOL}
    assert not bad, f"{name}: gradients differ, in units of the largest ({scale:.3g}): {bad}"


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@pytest.mark.parametrize("name", ROWS)
def test_losses_in_mixed_precision(name, kind):
    """With samples drawn at random. Gradients in fp16 may overflow: its scaler is for that."""
    system = build(name).train().to(DEVICE)
    for content in ("normal", "empty", "crowded"):
        batch = [target(name, content).to(DEVICE)] * 2
        with torch.autocast(DEVICE.type, kind):
            losses = system.loss(images(torch.float32).to(DEVICE), batch)
        assert all(torch.isfinite(v) for v in losses.values()), (content, losses)
        if kind == torch.float16:
            continue
        system.zero_grad()
        total(losses).backward()
        for key, parameter in system.named_parameters():
            grad = parameter.grad
            assert grad is None or bool(torch.isfinite(grad).all()), (content, key)


@pytest.mark.parametrize("name", ROWS)
@torch.no_grad()
def test_half_precision_outputs_decode(name):
    """As `evaluate(precision=...)` does it."""
    system = build(name).eval().to(DEVICE)
    with torch.autocast(DEVICE.type, torch.bfloat16):
        raw = system(images(torch.float32).to(DEVICE))
    full = type(raw)(*(v.float() if v.is_floating_point() else v for v in raw))
    predictions = system.decode(full, SIZES)
    assert [p.size for p in predictions] == [s.original for s in SIZES]
