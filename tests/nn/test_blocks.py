import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pixelwise.errors import UsageError
from pixelwise.nn.blocks import ConvNormAct, SeparableConv
from pixelwise.nn.norm import NORMS, BatchNorm, FrozenBatchNorm, make_norm


@pytest.mark.parametrize("kind", NORMS)
def test_norms_keep_the_shape_and_take_eps(kind: str) -> None:
    norm = make_norm(kind, 6, 0.25).eval()
    assert norm(torch.randn(2, 6, 5, 3)).shape == (2, 6, 5, 3)
    if kind != "affine":  # it divides by nothing
        assert norm.eps == 0.25


def test_an_affine_norm_scales_and_shifts_each_channel() -> None:
    norm = make_norm("affine", 2)
    norm.load_state_dict({"weight": torch.tensor([2.0, -1.0]), "bias": torch.tensor([0.5, 3.0])})
    x = torch.randn(2, 2, 3, 4)
    expected = torch.stack([2 * x[:, 0] + 0.5, 3 - x[:, 1]], 1)
    torch.testing.assert_close(norm(x), expected)
    assert not list(norm.parameters())


def test_no_norm_is_the_identity_and_an_unknown_one_is_named() -> None:
    assert isinstance(make_norm(None, 4), nn.Identity)
    with pytest.raises(UsageError, match=r"layer.*batch"):
        make_norm("layer", 4)


@pytest.mark.parametrize(("channels", "groups"), [(64, 32), (48, 24), (7, 7), (33, 11)])
def test_group_norm_finds_a_divisor(channels: int, groups: int) -> None:
    assert make_norm("group", channels).num_groups == groups


@pytest.mark.parametrize("eps", [1e-5, 0.0, 1e-3])
def test_frozen_norm_is_batch_norm_in_evaluation_and_never_moves(eps: float) -> None:
    frozen = FrozenBatchNorm(5, eps)
    state = {k: torch.rand(5) + 0.5 for k in ("weight", "bias", "running_mean", "running_var")}
    frozen.load_state_dict(state)
    x = torch.randn(3, 5, 4, 4)
    weight, bias, mean, variance = (v[:, None, None] for v in state.values())
    wanted = (x - mean) / (variance + eps).sqrt() * weight + bias  # torch's refuses an eps of 0
    torch.testing.assert_close(frozen.train()(x), wanted)
    assert not list(frozen.parameters())
    assert torch.equal(frozen.running_mean, state["running_mean"])


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_frozen_norm_lets_the_gradient_through_and_nothing_else(
    layout: torch.memory_format,
) -> None:
    norm, reference = FrozenBatchNorm(5), nn.BatchNorm2d(5).eval()
    for name, tensor in norm.state_dict().items():
        tensor.uniform_(0.5, 2)
        reference.state_dict()[name].copy_(tensor)
    x = torch.randn(2, 5, 3, 4).contiguous(memory_format=layout).requires_grad_()
    grad = torch.randn(2, 5, 3, 4).contiguous(memory_format=layout)
    (mine,) = torch.autograd.grad(norm(x), x, grad)
    (theirs,) = torch.autograd.grad(reference(x), x, grad)
    torch.testing.assert_close(mine, theirs)
    assert norm(x).is_contiguous(memory_format=layout)


def test_frozen_norm_keeps_half_precision_and_rounds_once() -> None:
    norm = FrozenBatchNorm(3)
    for tensor in norm.state_dict().values():
        tensor.uniform_(0.5, 2)
    x = torch.randn(2, 3, 8, 8).bfloat16().requires_grad_()
    y = norm(x)
    assert y.dtype == torch.bfloat16
    assert torch.equal(y, norm(x.float()).bfloat16())
    grad = torch.randn(2, 3, 8, 8).bfloat16()
    (passed,) = torch.autograd.grad(y, x, grad)
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    assert torch.equal(passed, (grad.float() * scale[:, None, None]).bfloat16())


def test_batch_norm_with_one_value_per_channel_uses_running_statistics() -> None:
    norm, reference = BatchNorm(4), nn.BatchNorm2d(4)
    norm.running_mean.uniform_()
    norm.running_var.uniform_(0.5, 2)
    reference.load_state_dict(norm.state_dict())
    before = {k: v.clone() for k, v in norm.state_dict().items()}
    x = torch.randn(1, 4, 1, 1)
    out = norm.train()(x)
    torch.testing.assert_close(out, reference.eval()(x))
    assert all(torch.equal(v, before[k]) for k, v in norm.state_dict().items())
    with pytest.raises(ValueError, match="more than 1 value"):  # what it spares the user
        reference.train()(x)


def test_batch_norm_is_torchs_everywhere_else() -> None:
    norm, reference = BatchNorm(4), nn.BatchNorm2d(4)
    x = torch.randn(2, 4, 1, 1)
    torch.testing.assert_close(norm.train()(x), reference.train()(x))
    torch.testing.assert_close(norm.running_var, reference.running_var)
    assert list(norm.state_dict()) == list(reference.state_dict())


@pytest.mark.parametrize(
    ("kernel", "stride", "dilation", "size", "expected"),
    [(3, 1, 1, 9, 9), (3, 2, 1, 9, 5), (7, 2, 1, 10, 5), (3, 1, 12, 9, 9), (1, 1, 1, 9, 9)],
)
def test_conv_pads_to_the_same_size(
    kernel: int, stride: int, dilation: int, size: int, expected: int
) -> None:
    conv = ConvNormAct(2, 3, kernel, stride=stride, dilation=dilation)
    assert conv(torch.randn(2, 2, size, size)).shape == (2, 3, expected, expected)


def test_padding_may_be_stated() -> None:
    conv = ConvNormAct(2, 3, 3, dilation=2, padding=0)
    assert conv(torch.randn(1, 2, 9, 8)).shape == (1, 3, 5, 4)


@pytest.mark.parametrize(
    ("norm", "bias", "expected"), [("batch", None, False), (None, None, True), (None, False, False)]
)
def test_bias_only_where_no_norm_follows(
    norm: str | None, bias: bool | None, expected: bool
) -> None:
    assert (ConvNormAct(2, 3, norm=norm, bias=bias).conv.bias is not None) == expected


@pytest.mark.parametrize("dilation", [1, 2, 5])
def test_bare_separable_conv_is_a_full_conv_of_rank_one_kernels(dilation: int) -> None:
    conv = SeparableConv(4, 6, dilation=dilation, norm="frozen", with_middle=False)
    depthwise, pointwise = conv.depthwise.conv.weight, conv.pointwise.conv.weight
    full = pointwise[:, :, 0, 0, None, None] * depthwise[None, :, 0]  # [6, 4, 3, 3]
    x = torch.randn(2, 4, 9, 11)
    expected = conv.pointwise.norm(F.conv2d(x, full, padding=dilation, dilation=dilation)).relu()
    torch.testing.assert_close(conv(x), expected, rtol=1e-4, atol=1e-5)


def test_separable_conv_has_norm_and_relu_between_only_when_asked() -> None:
    keys = set(SeparableConv(4, 6).state_dict())
    bare = set(SeparableConv(4, 6, with_middle=False).state_dict())
    assert {k.split(".")[1] for k in keys - bare} == {"norm"}
    assert (SeparableConv(4, 6).depthwise(torch.randn(1, 4, 5, 5)) >= 0).all()
