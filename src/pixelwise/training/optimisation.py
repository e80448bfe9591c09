"""How weights move: learning-rate schedules, parameter groups, what is frozen."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from pixelwise.errors import UsageError
from pixelwise.spec import OptimRecipe

# A backbone's stages are numbered in its parameter names: layer3.0.conv1, blocks.2.1, stages.0.
_STAGE = re.compile(r"^(?:.*?\.)??(?:layer|layers|stage|stages|block|blocks|features|conv)[._]?\d+")
_NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)  # pyright: ignore[reportPrivateUsage]


def poly(step: int, total: int, *, power: float = 0.9, end: float = 0.0) -> float:
    """Polynomial decay from 1 to `end`: (1 - end) * (1 - step / total)^power + end.

    Args:
        step:  steps done, 0..total.
        total: steps of the whole decay.
        power: 0.9 in DeepLab and all that followed; 1 is linear.
        end:   share of the peak that is left at the end.

    Source: ParseNet (arXiv:1506.04579), section 3; DeepLab V2 (arXiv:1606.00915), section 4.1.
    """
    return (1 - end) * (1 - min(step, total) / total) ** power + end


def cosine(step: int, total: int, *, end: float = 0.0) -> float:
    """Half a cosine from 1 to `end` over `total` steps.

    Source: SGDR (arXiv:1608.03983), eq. 5, one period.
    """
    return end + (1 - end) * 0.5 * (1 + math.cos(math.pi * min(step, total) / total))


def stepped(step: int, milestones: Sequence[int], *, gamma: float = 0.1) -> float:
    """`gamma` to the power of the number of milestones reached."""
    return gamma ** sum(step >= milestone for milestone in milestones)


def warmup(step: int, steps: int, *, start: float, kind: str = "linear") -> float:
    """Rise from `start` at step 0 to 1 at `steps`, along a line or an exponential.

    Source: linear: Goyal et al. (arXiv:1706.02677), section 2.2.
    """
    if step >= steps:
        return 1.0
    done = step / steps
    return start ** (1 - done) if kind == "exp" else start + (1 - start) * done


def lr_factor(step: int, total: int, recipe: OptimRecipe) -> float:
    """Share of the peak learning rate at a step.

    poly and cosine span what the warm-up leaves; the milestones of step count from the start of
    the run, and the warm-up multiplies (a drop inside the warm-up keeps both).

    Args:
        step:  steps done, 0..total.
        total: steps of the run.
        recipe: the optim section.
    """
    rise = warmup(step, recipe.warmup_steps, start=recipe.warmup_start, kind=recipe.warmup)
    if recipe.schedule == "step":
        marks = [round(m * total) if m < 1 else round(m) for m in recipe.milestones]
        return rise * stepped(step, marks, gamma=recipe.gamma)
    if step < recipe.warmup_steps or recipe.schedule == "constant":
        return rise
    end = recipe.end_lr / recipe.lr if recipe.lr else 0.0
    step, total = step - recipe.warmup_steps, max(1, total - recipe.warmup_steps)
    step -= step % recipe.update_every
    if recipe.schedule == "cosine":
        return cosine(step, total, end=end)
    return poly(step, total, power=recipe.power, end=end)


@dataclass(frozen=True)
class Stages:
    """The depth of every parameter: 0 is the stem, the last stage is just below the heads.

    Args:
        depth: parameter name → stage of the backbone; heads are not in it.
        count: number of stages, the stem included.
    """

    depth: dict[str, int]
    count: int


def find_stages(system: nn.Module) -> Stages:
    """Read the stages of `system.backbone` off its parameter names, in order of appearance.

    Whatever comes before the first numbered block is the stem. Blocks are numbered by their
    outermost number, so layer1.0 and layer1.1 are one stage.
    """
    stages: dict[str, int] = {}
    depth: dict[str, int] = {}
    for name in _named_backbone(system):
        match = _STAGE.match(name)
        if match is None or re.match(r"^(?:.*\.)?conv1(?:\.|$)", match[0]):
            # Before the blocks it is the stem; behind them it belongs to the last one.
            depth[name] = len(stages)
        else:
            depth[name] = stages.setdefault(match[0], len(stages) + 1)
    return Stages({f"backbone.{name}": d for name, d in depth.items()}, len(stages) + 1)


def _named_backbone(system: nn.Module) -> Iterator[str]:
    backbone = getattr(system, "backbone", None)
    if isinstance(backbone, nn.Module):
        yield from (name for name, _ in backbone.named_parameters())


def freeze(system: nn.Module, recipe: OptimRecipe) -> list[nn.Module]:
    """Turn off the gradients of frozen stages and norms.

    Args:
        system: changed in place.
        recipe: the optim section.

    Returns:
        The norm layers whose statistics must stand still: `hold` puts them into eval mode again
        after every `system.train()`.

    Raises:
        UsageError: more stages than the backbone has.
    """
    stages = find_stages(system)
    if recipe.freeze_stages > stages.count or (recipe.freeze_stages and not stages.depth):
        raise UsageError(
            f"optim.freeze_stages = {recipe.freeze_stages}: the backbone has "
            f"{stages.count if stages.depth else 0} stages, the stem included"
        )
    frozen = {name for name, depth in stages.depth.items() if depth < recipe.freeze_stages}
    for name, parameter in system.named_parameters():
        if name in frozen:
            parameter.requires_grad_(False)
    held: list[nn.Module] = []
    for name, module in system.named_modules():
        if not isinstance(module, nn.modules.batchnorm._BatchNorm):  # pyright: ignore[reportPrivateUsage]
            continue
        if recipe.freeze_norm or any(f"{name}.{p}" in frozen for p, _ in module.named_parameters()):
            held.append(module)
            for parameter in module.parameters():
                parameter.requires_grad_(False)
    return held


def hold(modules: Sequence[nn.Module]) -> None:
    """Keep the statistics of frozen norm layers still."""
    for module in modules:
        module.eval()


def parameter_groups(system: nn.Module, recipe: OptimRecipe) -> list[dict[str, object]]:
    """Parameters with equal learning-rate scale and decay, one group each.

    Returns:
        Groups for an optimiser; `lr_scale` multiplies the scheduled rate (`set_lr` does it).

    Raises:
        UsageError: `lr_scales` names a module that the system does not have.
    """
    scales = _module_scales(system, recipe)
    norms = _norm_parameters(system)
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in system.named_parameters():
        if not parameter.requires_grad:
            continue
        scale, decay = scales[name], recipe.weight_decay
        is_bias = name.endswith("bias")
        if is_bias and name not in norms:
            scale *= recipe.bias_lr_scale
        if recipe.no_decay_norm_bias and (is_bias or name in norms):
            decay = 0.0
        groups.setdefault((scale, decay), []).append(parameter)
    return [
        {"params": params, "lr": recipe.lr * scale, "lr_scale": scale, "weight_decay": decay}
        for (scale, decay), params in groups.items()
    ]


def _module_scales(system: nn.Module, recipe: OptimRecipe) -> dict[str, float]:
    """The factor that a parameter's place gives it, by the parameter's name."""
    stages = find_stages(system)
    names = [name for name, _ in system.named_parameters()]
    scales = dict.fromkeys(names, recipe.head_lr_scale)
    for name, depth in stages.depth.items():
        scales[name] = recipe.backbone_lr_scale * recipe.layer_decay ** (stages.count - depth)
    for path in sorted(recipe.lr_scales, key=len):
        inside = [name for name in names if name == path or name.startswith(f"{path}.")]
        if not inside:
            children = ", ".join(name for name, _ in system.named_children())
            raise UsageError(
                f"optim.lr_scales: no module is named {path!r}; the system has {children}"
            )
        scales.update(dict.fromkeys(inside, recipe.lr_scales[path]))
    return scales


def _norm_parameters(system: nn.Module) -> set[str]:
    """Names of the weights and biases of norm layers."""
    return {
        f"{prefix}.{name}"
        for prefix, module in system.named_modules()
        if isinstance(module, _NORMS)
        for name, _ in module.named_parameters(recurse=False)
    }


def make_optimizer(system: nn.Module, recipe: OptimRecipe) -> torch.optim.Optimizer:
    """The optimiser of a recipe over the trainable parameters.

    Raises:
        UsageError: everything is frozen.
    """
    groups = parameter_groups(system, recipe)
    if not groups:
        raise UsageError("nothing is left to train: lower optim.freeze_stages")
    if recipe.name == "adamw":
        return torch.optim.AdamW(groups, lr=recipe.lr, betas=(recipe.momentum, 0.999))
    return torch.optim.SGD(groups, lr=recipe.lr, momentum=recipe.momentum, nesterov=recipe.nesterov)


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the scheduled learning rate, scaled per group."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]
