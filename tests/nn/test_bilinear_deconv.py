"""What `test_large_kernel` does not say of the bilinear transposed convolution."""

import json

import pytest
import torch

from pixelwise.nn.bilinear_deconv import BilinearDeconv, bilinear_kernel
from pixelwise.ops.resize import resize
from tests.fixtures import parity_dir


def test_kernels_of_the_fixture() -> None:
    path = next((p for p in parity_dir().glob("**/tables.json")), None)
    if path is None:
        pytest.skip("no tables.json; set PIXELWISE_PARITY")
    for side, expected in json.loads(path.read_text())["bilinear_kernels"].items():
        torch.testing.assert_close(bilinear_kernel(int(side)), torch.tensor(expected))


@pytest.mark.parametrize("factor", [2, 3, 4, 8, 32])
def test_an_odd_kernel_is_interpolation_with_aligned_corners_everywhere(factor: int) -> None:
    up = BilinearDeconv(2, factor, kernel=2 * factor - 1, padding=factor - 1).double()
    x = torch.randn(1, 2, 4, 5).double()
    size = (3 * factor + 1, 4 * factor + 1)
    expected = resize(x, size, align_corners=True)
    torch.testing.assert_close(up(x), expected, rtol=0, atol=1e-6)  # float32 kernel


def test_the_border_fades_where_interpolation_clamps() -> None:
    up = BilinearDeconv(1, 2)
    ones = torch.ones(1, 1, 3, 3)
    torch.testing.assert_close(up(ones)[0, 0, 2], torch.tensor([0.75, 1, 1, 1, 1, 0.75]))


@pytest.mark.parametrize(("factor", "kernel"), [(2, 4), (3, 5), (8, 16), (32, 64)])
def test_default_kernels(factor: int, kernel: int) -> None:
    assert BilinearDeconv(1, factor).kernel_size == (kernel, kernel)


def test_channels_are_apart_at_the_start_and_may_mix() -> None:
    up = BilinearDeconv(3, 2)
    assert up.weight.shape == (3, 3, 4, 4)
    start = up.weight.detach().clone()
    assert (start.flatten(2).sum(2) == 4 * torch.eye(3)).all()
    up(torch.randn(1, 3, 4, 4)).square().sum().backward()
    assert (up.weight.grad != 0).all()
    with torch.no_grad():
        up.weight.normal_()
    up.reset_parameters()
    assert torch.equal(up.weight, start)
