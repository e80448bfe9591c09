import pytest
import torch
from torch import nn

from pixelwise.nn.path_aggregation import PathAggregation

SIZES = [(19, 26), (10, 13), (5, 7), (3, 4)]


def pyramid(sizes=SIZES, channels=4, extra=True):
    torch.manual_seed(0)
    levels = [torch.randn(2, channels, *size) for size in sizes]
    return [*levels, levels[-1][..., ::2, ::2]] if extra else levels


def build(**options):
    torch.manual_seed(1)
    return PathAggregation(4, 4, **options)


def let_through(net):
    """Levels do not meet, and the output convolutions are the identity."""
    for conv in net.down:
        nn.init.zeros_(conv.conv.weight)
    for conv in net.output:
        nn.init.dirac_(conv.conv.weight)
    return net


@pytest.mark.parametrize("chain", ["output", "sum"])
@pytest.mark.parametrize("sizes", [SIZES, [(16, 24), (8, 12), (4, 6), (2, 3)], [(1, 1)] * 4])
def test_levels_keep_their_sizes_and_one_more_follows(chain, sizes):
    levels = build(chain=chain)(pyramid(sizes))
    assert [tuple(x.shape[-2:]) for x in levels[:4]] == sizes
    assert torch.equal(levels[4], levels[3][..., ::2, ::2])


@pytest.mark.parametrize("chain", ["output", "sum"])
def test_the_finest_level_stays_as_it_is(chain):
    levels = pyramid()
    assert build(chain=chain)(levels)[0] is levels[0]


def test_the_papers_chain_climbs_over_the_outputs():
    net, (p2, p3, p4, p5, _) = build(), pyramid()
    n3 = net.output[0](p3 + net.down[0](p2))
    n4 = net.output[1](p4 + net.down[1](n3))
    n5 = net.output[2](p5 + net.down[2](n4))
    for ours, wanted in zip(net([p2, p3, p4, p5])[1:], (n3, n4, n5), strict=False):
        assert torch.equal(ours, wanted)
    assert (n3 >= 0).all()


def test_openmmlabs_chain_climbs_over_the_sums():
    net, (p2, p3, p4, p5, _) = build(chain="sum", act=None), pyramid()
    s3 = p3 + net.down[0](p2)
    s4 = p4 + net.down[1](s3)
    s5 = p5 + net.down[2](s4)
    wanted = [net.output[i](s) for i, s in enumerate((s3, s4, s5))]
    for ours, theirs in zip(net([p2, p3, p4, p5])[1:], wanted, strict=False):
        assert torch.equal(ours, theirs)
    assert (wanted[0] < 0).any()


@pytest.mark.parametrize("chain", ["output", "sum"])
def test_without_the_path_the_pyramid_is_left(chain):
    levels = pyramid()
    for ours, given in zip(let_through(build(chain=chain, act=None))(levels), levels, strict=True):
        assert torch.equal(ours, given)


def test_it_ignores_the_level_that_the_pyramid_added():
    net, levels = build(), pyramid()
    strange = [*levels[:4], torch.full_like(levels[4], 9.0)]
    for a, b in zip(net(levels), net(strange), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("chain", ["output", "sum"])
def test_a_detail_of_the_finest_level_reaches_the_coarsest(chain):
    levels = [x.requires_grad_() for x in pyramid()]
    build(chain=chain)(levels)[3].sum().backward()
    assert all(x.grad.abs().sum() > 0 for x in levels[:4])
    # And only upwards: the finest output knows nothing of the others.
    assert torch.autograd.grad(build()(levels)[0].sum(), levels[1], allow_unused=True) == (None,)


@pytest.mark.parametrize(
    ("options", "per_conv"),
    [
        ({}, 256),
        ({"norm": "group"}, 256 + 2 * 256),  # the released convolutions keep their biases
        ({"norm": "group", "chain": "sum"}, 2 * 256),
    ],
)
def test_parameters(options, per_conv):
    with torch.device("meta"):
        count = sum(p.numel() for p in PathAggregation(256, 4, **options).parameters())
    assert count == 6 * (9 * 256 * 256 + per_conv)
