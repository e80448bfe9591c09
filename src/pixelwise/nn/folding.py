"""Batch norms folded into the convolutions before them: fewer passes over memory at prediction."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from copy import deepcopy
from itertools import chain
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from pixelwise.nn.norm import FrozenBatchNorm

_NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm, FrozenBatchNorm)
_MEAN_AT: dict[Any, int] = {F.batch_norm: 1, torch.batch_norm: 3}  # among their arguments


def fold_batch_norms(network: nn.Module, example: Tensor) -> nn.Module:
    """A copy of a network whose convolutions do what the batch norms behind them did.

    With fixed statistics a batch norm is a scale and a shift per channel, which the weights and the
    bias of a convolution can hold; what is saved is a pass over the whole map, on a CPU up to
    half of a light backbone's time. Which norm stands behind which convolution is not read from
    names but seen: the network runs once, and a pair is folded only if nothing else reads the
    convolution's output or uses either of the two.

    Args:
        network: any; it stays as it is.
        example: [B, C, H, W], an input of any size and content.

    Returns:
        A copy in evaluation mode, for prediction only, that shares all other weights. Its outputs
        are those of the network up to rounding.

    Source:  Jacob et al., "Quantization and Training of Neural Networks for Efficient
        Integer-Arithmetic-Only Inference" (arXiv:1712.05877), section 3.2.
    """
    tensors = chain(network.parameters(), network.buffers())
    folded = deepcopy(network, {id(t): t for t in tensors}).eval()
    with torch.no_grad():
        with _Watch() as watch:
            watch.count(folded(example))
        convs = {id(m.weight): m for m in folded.modules() if isinstance(m, nn.Conv2d)}
        for parent in list(folded.modules()):
            for name, norm in list(parent.named_children()):
                weight = watch.source_of(norm) if isinstance(norm, _NORMS) else None
                if weight in convs:
                    _fold(convs[weight], norm)
                    # Norms of timm hold the activation that follows as a child.
                    setattr(parent, name, nn.Sequential(*norm.children()))
    return folded


class _Watch(TorchFunctionMode):
    """Which tensor is read how often, and which convolutions' outputs each batch norm reads."""

    def __init__(self) -> None:
        super().__init__()
        self._reads: Counter[int] = Counter()  # by id, how many results depend on a tensor
        self._weights: dict[int, int] = {}  # of a convolution, by its output
        self._inputs: dict[int, list[int]] = {}  # of a norm, by its running mean
        self._alive: list[Any] = []  # an id is used again once its tensor is gone

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run a function and note what it reads."""
        result = func(*args, **(kwargs or {}))
        if not _tensors_in(result):  # sizes and the like
            return result
        self._alive.append(result)
        self.count((*args, *(kwargs or {}).values()))
        if func is F.conv2d:
            self._weights[id(result)] = id(args[1])
        elif func in _MEAN_AT and args[_MEAN_AT[func]] is not None:  # else it takes the batch's
            self._inputs.setdefault(id(args[_MEAN_AT[func]]), []).append(id(args[0]))
        return result

    def count(self, values: Any) -> None:
        """Note that tensors, or those in tuples and lists, are read."""
        self._reads.update(id(t) for t in _tensors_in(values))

    def source_of(self, norm: nn.Module) -> int | None:
        """The id of the weight whose convolution can take in a batch norm, if there is one."""
        inputs = self._inputs.get(id(norm.running_mean), [])
        weights = {self._weights.get(x) for x in inputs}
        if len(weights) != 1 or any(self._reads[x] > 1 for x in inputs):
            return None
        (weight,) = weights
        # A weight that is read more often also serves another purpose.
        return weight if weight is not None and self._reads[weight] == len(inputs) else None


def _tensors_in(values: Any) -> list[Tensor]:
    if isinstance(values, Tensor):
        return [values]
    if isinstance(values, tuple | list):
        parts = cast("Sequence[Any]", values)
        return [t for part in parts for t in _tensors_in(part)]
    return []


def _fold(conv: nn.Conv2d, norm: nn.Module) -> None:
    mean, var, weight, bias = (
        cast("Tensor | None", getattr(norm, name))
        for name in ("running_mean", "running_var", "weight", "bias")
    )
    assert mean is not None
    assert var is not None
    # In double precision: one rounding, as if the weights had been trained like this.
    scale = (var.double() + cast("float", norm.eps)).rsqrt()  # [C]
    scale = scale if weight is None else scale * weight
    shift = -mean if conv.bias is None else conv.bias - mean
    shift = shift * scale if bias is None else shift * scale + bias
    kind, layout = conv.weight.dtype, torch.channels_last
    folded = (conv.weight * scale[:, None, None, None]).to(kind, memory_format=layout)
    conv.weight = nn.Parameter(folded, requires_grad=False)
    conv.bias = nn.Parameter(shift.to(kind), requires_grad=False)
