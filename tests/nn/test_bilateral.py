import pytest
import torch
from torch import nn

from pixelwise.nn.bilateral import AttentionRefinement, FeatureFusion, SpatialPath

GATES = ("two_layer", "norm", "norm_relu")


def zero_gate(module: nn.Module) -> None:
    for name, parameter in module.named_parameters():
        if "conv" in name:
            nn.init.zeros_(parameter)


@pytest.mark.parametrize(
    ("widths", "kernels", "strides"),
    [((4, 5, 6), [3, 3, 3], [2, 2, 2]), ((4, 5, 6, 7), [7, 3, 3, 1], [2, 2, 2, 1])],
)
@pytest.mark.parametrize("side", [(64, 32), (65, 97), (1, 9)])
def test_the_spatial_path_ends_at_stride_8(widths, kernels, strides, side) -> None:
    path = SpatialPath(2, widths).eval()
    assert [block.conv.kernel_size[0] for block in path] == kernels
    assert [block.conv.stride[0] for block in path] == strides
    height, width = (-(-n // 8) for n in side)
    assert path(torch.randn(1, 2, *side)).shape == (1, widths[-1], height, width)


def test_attention_is_one_number_per_channel_in_0_to_1() -> None:
    module = AttentionRefinement(3, 5)
    x = torch.randn(4, 3, 6, 7)
    inner = module.project(x)
    gate = module.gate(inner)
    assert gate.shape == (4, 5, 1, 1)
    assert ((gate > 0) & (gate < 1)).all()
    torch.testing.assert_close(module.eval()(x), module.project(x) * module.gate(module.project(x)))


def test_attention_sees_the_whole_image_but_not_where_things_are() -> None:
    module = AttentionRefinement(3, 5).eval()
    inner = torch.randn(1, 5, 6, 7)
    shuffled = inner.flatten(2)[..., torch.randperm(42)].view_as(inner)
    torch.testing.assert_close(module.gate(shuffled), module.gate(inner))
    other = inner.clone()
    other[..., 0, 0] += 10
    assert not torch.allclose(module.gate(other), module.gate(inner))


def test_attention_trains_on_a_single_image() -> None:
    """Its norm sees one value per channel there, which has no variance."""
    module = AttentionRefinement(3, 5).train()
    module(torch.randn(1, 3, 6, 7)).sum().backward()
    assert torch.equal(module.attend.norm.running_mean, torch.zeros(5))
    assert all(p.grad is not None and p.grad.isfinite().all() for p in module.parameters())


@pytest.mark.parametrize("gate", GATES)
def test_fusion_lies_between_once_and_twice_the_fused_map(gate: str) -> None:
    module = FeatureFusion(5, 6, gate=gate)
    detail, context = torch.randn(4, 2, 7, 5), torch.randn(4, 3, 7, 5)
    fused = module.fuse(torch.cat([detail, context], 1))
    weight = module.gate(fused)
    assert weight.shape == (4, 6, 1, 1)
    assert ((weight > 0) & (weight < 1)).all()
    y = module.eval()(detail, context)
    fused = module.fuse(torch.cat([detail, context], 1))
    assert (y >= fused).all()
    assert (y <= 2 * fused).all()
    torch.testing.assert_close(y, fused * (1 + module.gate(fused)))


@pytest.mark.parametrize("gate", GATES)
def test_a_gate_of_zero_weights_is_one_half(gate: str) -> None:
    module = FeatureFusion(5, 6, gate=gate).eval()
    zero_gate(module.attend)
    detail, context = torch.randn(2, 2, 7, 5), torch.randn(2, 3, 7, 5)
    fused = module.fuse(torch.cat([detail, context], 1))
    torch.testing.assert_close(module(detail, context), 1.5 * fused)


def test_three_published_gates() -> None:
    """The paper's two layers; one with norm; the same with a ReLU, which keeps half at least."""
    x = torch.randn(32, 6, 1, 1)
    pooled = x.flatten(1)

    two = FeatureFusion(5, 6, gate="two_layer").eval()
    first, second = (layer.conv.weight.flatten(1) for layer in two.attend)
    expected = (torch.relu(pooled @ first.T) @ second.T).sigmoid()
    torch.testing.assert_close(two.gate(x).flatten(1), expected)
    assert not any(name.endswith("bias") for name, _ in two.attend.named_parameters())

    one = FeatureFusion(5, 6, gate="norm").eval()
    nn.init.normal_(one.attend.norm.bias)
    inner = one.attend.norm(one.attend.conv(x)).flatten(1)
    torch.testing.assert_close(one.gate(x).flatten(1), inner.sigmoid())
    assert (one.gate(x) < 0.5).any()

    rectified = FeatureFusion(5, 6, gate="norm_relu").eval()
    rectified.attend.load_state_dict(one.attend.state_dict())
    torch.testing.assert_close(rectified.gate(x).flatten(1), inner.relu().sigmoid())
    assert (rectified.gate(x) >= 0.5).all()
