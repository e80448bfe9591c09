import pytest
import torch
from torch import Tensor, nn

from pixelwise.nn.exporting import _is_exporting, is_exporting


class Question(nn.Module):
    """Ones while an exporter looks at it, else zeros."""

    def __init__(self, ask) -> None:
        super().__init__()
        self.ask = ask

    def forward(self, x: Tensor) -> Tensor:
        return torch.ones_like(x) if self.ask() else torch.zeros_like(x)


@pytest.mark.parametrize("ask", [is_exporting, _is_exporting])
def test_an_exporter_is_told_from_a_compiler(ask) -> None:
    net, x = Question(ask), torch.zeros(2)
    assert not net(x).any()
    assert torch.export.export(net, (x,), strict=False).module()(x).all()
    assert not torch.compile(net, backend="eager")(x).any()
