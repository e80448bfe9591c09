"""DarkNet-53: counts, sizes, what is built, what is frozen."""

import pytest
import torch

from pixelwise.errors import UsageError
from pixelwise.nn.backbones import build_backbone


def test_layers_and_widths_of_the_paper() -> None:
    """52 convolutions before the classifier; three taps of 256, 512 and 1024 channels."""
    with torch.device("meta"):
        net = build_backbone("darknet53", levels=(3, 4, 5))
        maps = net(torch.zeros(1, 3, 550, 550))
    assert sum(isinstance(m, torch.nn.Conv2d) for m in net.modules()) == 52
    assert [tuple(m.shape[1:]) for m in maps] == [(256, 69, 69), (512, 35, 35), (1024, 18, 18)]
    assert net.channels == (256, 512, 1024)
    assert net.strides == (8, 16, 32)
    slopes = {m.negative_slope for m in net.modules() if isinstance(m, torch.nn.LeakyReLU)}
    assert slopes == {0.1}


def test_only_what_is_needed_is_built_and_frozen() -> None:
    with torch.device("meta"):
        net = build_backbone("darknet53", levels=(1, 2))
    assert len(net.stages) == 2
    net.freeze(2)
    net.train()
    trained = {name.split(".")[1] for name, p in net.named_parameters() if p.requires_grad}
    assert trained == {"1"}
    assert not net.stem.training
    assert net.stages[1].training


def test_it_has_no_dilated_form() -> None:
    with pytest.raises(UsageError, match="output_stride"):
        build_backbone("darknet53", output_stride=16)
