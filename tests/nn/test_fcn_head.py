import pytest
import torch

from pixelwise.errors import UsageError
from pixelwise.nn.fcn_head import FCNHead


def count(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_parameters_of_torchvision_and_mmseg() -> None:
    with torch.device("meta"):
        torchvision = FCNHead(2048, 21)
        mmseg = FCNHead(2048, 21, depth=3, with_concat=True)
    classifier = 512 * 21 + 21
    first = 2048 * 512 * 9 + 2 * 512
    assert count(torchvision) == first + classifier
    assert count(mmseg) == first + (512 + 2560) * 512 * 9 + 4 * 512 + classifier


def test_the_last_convolution_sees_the_map_first_and_then_what_was_made_of_it() -> None:
    head = FCNHead(4, 3, width=6, depth=3, with_concat=True).eval()
    x = torch.randn(2, 4, 5, 7)
    joined = torch.cat([x, head.refine[1](head.refine[0](x))], 1)
    torch.testing.assert_close(head(x), head.classify(head.fuse(joined)))
    assert head(x).shape == (2, 3, 5, 7)


@pytest.mark.parametrize(("with_concat", "dilations"), [(False, [6, 6, 6]), (True, [6, 6, 1])])
def test_a_convolution_behind_the_concatenation_is_not_dilated(
    with_concat: bool, dilations: list[int]
) -> None:
    head = FCNHead(4, 3, width=4, depth=3, with_concat=with_concat, dilation=6)
    convs = [*(block.conv for block in head.refine), head.fuse.conv]
    assert [c.dilation[0] for c in convs] == dilations
    assert head(torch.randn(2, 4, 5, 7)).shape == (2, 3, 5, 7)


@pytest.mark.parametrize("options", [{"depth": 0}, {"depth": 1, "with_concat": True}])
def test_a_head_without_its_convolutions_is_refused(options: dict) -> None:
    with pytest.raises(UsageError, match="depth"):
        FCNHead(4, 3, **options)
