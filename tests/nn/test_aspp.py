import pytest
import torch
from torch import nn

from pixelwise.nn.aspp import ASPP, ImagePool


def test_a_rate_beyond_the_map_leaves_the_centre_tap_only() -> None:
    aspp = ASPP(6, 4, rates=(9,), conv="plain", image_pool="none").eval()
    x = torch.randn(1, 6, 9, 7)
    atrous = aspp.atrous[0]
    centre = nn.functional.conv2d(x, atrous.conv.weight[:, :, 1:2, 1:2])
    torch.testing.assert_close(atrous(x), atrous.norm(centre).relu(), rtol=1e-4, atol=1e-6)


def test_image_pool_is_constant_over_the_map() -> None:
    pool = ImagePool(6, 4, norm="batch").eval()
    y = pool(torch.randn(2, 6, 5, 7))
    assert y.shape == (2, 4, 5, 7)
    torch.testing.assert_close(y, y[:, :, :1, :1].expand_as(y))


@pytest.mark.parametrize(
    ("place", "order"), [("first", [2, 0, 1]), ("last", [0, 1, 2]), ("none", [0, 1])]
)
def test_branches_join_in_the_stated_order(place: str, order: list[int]) -> None:
    aspp = ASPP(6, 4, rates=(2,), image_pool=place).eval()
    seen: list[torch.Tensor] = []
    aspp.project.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    x = torch.randn(1, 6, 5, 5)
    aspp(x)
    branches = [aspp.pointwise(x), aspp.atrous[0](x)]
    if aspp.pool is not None:
        branches.append(aspp.pool(x))
    torch.testing.assert_close(seen[0], torch.cat([branches[i] for i in order], 1))


def test_parameters_do_not_depend_on_the_rates() -> None:
    counts = {
        sum(p.numel() for p in ASPP(2048, 256, rates=r, conv="separable").parameters())
        for r in ((6, 12, 18), (12, 24, 36))
    }
    assert counts == {2_691_584 + 1280 * 256 + 2 * 256}  # branches, then the projection


@pytest.mark.parametrize(("projection", "kernel"), [("1x1", 1), ("3x3", 3), ("1x1+3x3", 1)])
def test_projection_forms(projection: str, kernel: int) -> None:
    aspp = ASPP(6, 4, projection=projection, conv="plain")
    assert aspp.project.conv.kernel_size == (kernel, kernel)
    assert isinstance(aspp.refine, nn.Identity) == (projection != "1x1+3x3")
    assert aspp(torch.randn(2, 6, 5, 5)).shape == (2, 4, 5, 5)


def test_one_image_trains() -> None:
    aspp = ASPP(6, 4).train()
    aspp(torch.randn(1, 6, 5, 5)).sum().backward()
    assert all(p.grad is not None for p in aspp.parameters())
