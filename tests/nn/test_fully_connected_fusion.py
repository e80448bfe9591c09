import pytest
import torch
from torch import nn

from pixelwise.nn.conventions import CONVENTIONS
from pixelwise.nn.fully_connected_fusion import FullyConnectedFusion
from pixelwise.nn.mask_head import MaskHead

RULES = CONVENTIONS["panet"]


def build(**options):
    torch.manual_seed(0)
    return FullyConnectedFusion(8, 14, **options)


def test_parameters_of_the_paper():
    with torch.device("meta"):
        branch = FullyConnectedFusion(256, 14, norm="group")
    convs = 9 * 256 * 256 + 2 * 256 + 9 * 256 * 128 + 2 * 128
    assert sum(p.numel() for p in branch.parameters()) == convs + 25088 * 784 + 784


def test_a_pixel_of_the_mask_sees_the_whole_region():
    features = torch.randn(1, 8, 14, 14, requires_grad=True)
    build(act=None)(features)[0, 0, 3, 5].backward()
    assert (features.grad.abs().sum(1) > 0).float().mean() > 0.9


@pytest.mark.parametrize("act", ["relu", None])
def test_the_relu_lets_it_only_add_foreground(act):
    mask = build(act=act)(torch.randn(6, 8, 14, 14))
    assert mask.shape == (6, 1, 28, 28)
    assert (mask < 0).any() == (act is None)


def test_rows_of_the_layer_are_rows_of_the_mask():
    branch = build(act=None)
    nn.init.zeros_(branch.fc.weight)
    with torch.no_grad():
        branch.fc.bias.copy_(torch.arange(784.0))
    assert torch.equal(branch(torch.randn(1, 8, 14, 14))[0, 0], torch.arange(784.0).reshape(28, 28))


def heads():
    """A mask head with the branch, and the same one without."""
    torch.manual_seed(1)
    plain = MaskHead(8, 3, RULES, channels=8, norm="group")
    fused = MaskHead(8, 3, RULES, channels=8, norm="group", branch=build(norm="group"))
    fused.load_state_dict({**fused.state_dict(), **plain.state_dict()})
    return plain, fused


def test_without_weights_it_leaves_the_mask_alone():
    plain, fused = heads()
    nn.init.zeros_(fused.branch.fc.weight)
    nn.init.zeros_(fused.branch.fc.bias)
    features = torch.randn(5, 8, 14, 14)
    assert torch.equal(fused.predict(features), plain.predict(features))


def test_what_it_adds_is_the_same_for_all_classes_and_comes_from_before_the_last_convolution():
    plain, fused = heads()
    nn.init.normal_(fused.branch.fc.weight)
    features = torch.randn(5, 8, 14, 14)
    added = fused.predict(features) - plain.predict(features)  # [5, 3, 28, 28]
    before = plain.convs[2](plain.convs[1](plain.convs[0](features)))
    torch.testing.assert_close(added, fused.branch(before).expand(-1, 3, -1, -1))
    assert added.abs().max() > 0.1
