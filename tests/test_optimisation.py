"""Schedules against published values, parameter groups, frozen parts, averaged weights."""

import json
import os
from pathlib import Path

import pytest
import torch
from torch import nn

from pixelwise.errors import UsageError
from pixelwise.spec import OptimRecipe
from pixelwise.systems import create
from pixelwise.training import optimisation as opt
from pixelwise.training.ema import AveragedWeights

PARITY = Path(os.environ.get("PIXELWISE_PARITY", Path(__file__).parents[1] / "../shared/parity"))


@pytest.fixture(scope="module")
def tables():
    path = PARITY / "semantic" / "tables.json"
    if not path.exists():
        pytest.skip("no fixtures at ../shared/parity")
    return json.loads(path.read_text())


def test_poly_matches_deeplab(tables):
    t = tables["poly"]
    for step, lr in t["values"].items():
        assert t["base"] * opt.poly(int(step), t["max_iter"], power=t["power"]) == pytest.approx(
            lr, rel=1e-12
        )


def test_poly_with_end_value_matches_mmengine(tables):
    t = tables["poly_eta_min"]
    recipe = OptimRecipe(lr=t["base"], end_lr=t["eta_min"], power=t["power"])
    for step, lr in t["values"].items():
        assert recipe.lr * opt.lr_factor(int(step), t["max_iter"], recipe) == pytest.approx(
            lr, rel=1e-12
        )


@pytest.mark.parametrize("kind", ["exp", "linear"])
def test_warmup_then_poly_matches_bisenet(tables, kind):
    t = tables["bisenet_warmup_poly"]
    recipe = OptimRecipe(
        lr=t["base"], warmup_steps=t["warmup"], warmup_start=t["r0"], warmup=kind, power=0.9
    )
    expected = {int(k): v for k, v in t["exp"].items()}
    if kind == "linear":  # the table stores the exponential form; its formula gives the other
        expected = {
            step: t["base"] * (t["r0"] + (1 - t["r0"]) * step / t["warmup"])
            if step < t["warmup"]
            else lr
            for step, lr in expected.items()
        }
    for step, lr in expected.items():
        assert recipe.lr * opt.lr_factor(step, t["max_iter"], recipe) == pytest.approx(lr, rel=1e-9)


def test_poly_may_change_every_tenth_step_only():
    every, tenth = OptimRecipe(lr=1.0), OptimRecipe(lr=1.0, update_every=10)
    for step in (0, 9, 10, 57, 99):
        expected = opt.lr_factor(step // 10 * 10, 100, every)
        assert opt.lr_factor(step, 100, tenth) == expected
    late = OptimRecipe(lr=1.0, update_every=10, warmup_steps=5)  # counted from the end of warm-up
    assert opt.lr_factor(14, 105, late) == 1.0
    assert opt.lr_factor(15, 105, late) == opt.poly(10, 100)


FACTORS = [
    # schedule, extra keys, (step, expected) of 100 steps, why
    ("constant", {}, [(0, 1), (99, 1)], "never changes"),
    ("cosine", {}, [(0, 1), (50, 0.5), (100, 0)], "half a cosine"),
    ("cosine", {"end_lr": 0.1}, [(100, 0.1)], "ends at end_lr / lr"),
    ("step", {"milestones": (0.5, 80)}, [(49, 1), (50, 0.1), (79, 0.1), (80, 0.01)], "both units"),
    (
        "step",
        {"warmup_steps": 4, "warmup_start": 0.5},
        [(0, 0.5), (2, 0.75), (4, 1)],
        "linear rise",
    ),
]


@pytest.mark.parametrize(("schedule", "keys", "points", "why"), FACTORS)
def test_factor_table(schedule, keys, points, why):
    recipe = OptimRecipe(lr=1.0, schedule=schedule, **keys)
    for step, expected in points:
        assert opt.lr_factor(step, 100, recipe) == pytest.approx(expected), why


def test_cosine_equals_torch():
    parameter = nn.Parameter(torch.zeros(1))
    theirs = torch.optim.SGD([parameter], lr=1.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(theirs, 30, eta_min=0.05)
    recipe = OptimRecipe(lr=1.0, schedule="cosine", end_lr=0.05)
    for step in range(30):
        assert theirs.param_groups[0]["lr"] == pytest.approx(opt.lr_factor(step, 30, recipe))
        theirs.step()
        schedule.step()


class Tiny(nn.Module):
    """A system's skeleton: a backbone with a stem and two stages, and a head."""

    def __init__(self):
        super().__init__()
        self.backbone = nn.Module()
        self.backbone.conv1 = nn.Conv2d(3, 4, 3)
        self.backbone.bn1 = nn.BatchNorm2d(4)
        self.backbone.layer1 = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))
        self.backbone.layer2 = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))
        self.head = nn.Conv2d(4, 2, 1)

    def forward(self, x):
        b = self.backbone
        return self.head(b.layer2(b.layer1(b.bn1(b.conv1(x)))))


def scale_of(groups, parameter):
    (found,) = [g for g in groups if any(p is parameter for p in g["params"])]
    return found["lr_scale"], found["weight_decay"]


def test_groups_scale_by_depth_and_spare_norms():
    net = Tiny()
    recipe = OptimRecipe(
        layer_decay=0.5, head_lr_scale=10, backbone_lr_scale=2, no_decay_norm_bias=True,
        weight_decay=0.1,
    )  # fmt: skip
    groups = opt.parameter_groups(net, recipe)
    assert scale_of(groups, net.head.weight) == (10, 0.1)
    assert scale_of(groups, net.head.bias) == (10, 0.0)
    assert scale_of(groups, net.backbone.layer2[0].weight) == (1.0, 0.1)
    assert scale_of(groups, net.backbone.layer1[0].weight) == (0.5, 0.1)
    assert scale_of(groups, net.backbone.conv1.weight) == (0.25, 0.1)
    assert scale_of(groups, net.backbone.bn1.weight) == (0.25, 0.0)
    grouped = [p for g in groups for p in g["params"]]
    assert len(grouped) == len(list(net.parameters()))


def test_biases_of_convolutions_have_their_own_factor():
    """Caffe's recipe: biases learn twice as fast without decay; in the head, 10 and 20 times."""
    net = Tiny()
    recipe = OptimRecipe(head_lr_scale=10, bias_lr_scale=2, no_decay_norm_bias=True)
    groups = opt.parameter_groups(net, recipe)
    decay = recipe.weight_decay
    assert scale_of(groups, net.backbone.conv1.weight) == (1, decay)
    assert scale_of(groups, net.backbone.conv1.bias) == (2, 0.0)
    assert scale_of(groups, net.backbone.bn1.bias) == (1, 0.0)
    assert scale_of(groups, net.head.weight) == (10, decay)
    assert scale_of(groups, net.head.bias) == (20, 0.0)


def test_single_modules_have_their_own_factor():
    net = Tiny()
    scales = {"backbone.layer2.0": 7, "backbone.layer2": 3}
    groups = opt.parameter_groups(net, OptimRecipe(lr_scales=scales, head_lr_scale=10))
    assert scale_of(groups, net.backbone.layer2[0].weight)[0] == 7
    assert scale_of(groups, net.backbone.layer2[1].weight)[0] == 3
    assert scale_of(groups, net.backbone.layer1[0].weight)[0] == 1
    assert scale_of(groups, net.head.bias)[0] == 10
    for wrong in ("layer2", "head.w", "hea"):
        with pytest.raises(UsageError, match=f"{wrong}.*backbone, head"):
            opt.parameter_groups(net, OptimRecipe(lr_scales={wrong: 2}))


def test_the_released_recipe_of_bisenet():
    """Heads and fusion learn ten times as fast; the other modules of its two paths do not."""
    with torch.device("meta"):
        net = create("bisenet")
    scales = {"fusion": 10, "head": 10, "auxiliary": 10}
    groups = opt.parameter_groups(net, OptimRecipe(lr_scales=scales, no_decay_norm_bias=True))
    fast = {id(p) for g in groups if g["lr_scale"] == 10 for p in g["params"]}
    expected = [net.fusion, net.head, net.auxiliary]
    assert fast == {id(p) for module in expected for p in module.parameters()}


TIMM = [("tf_efficientnet_lite0", 8), ("convnext_atto", 5), ("resnet18", 5)]


@pytest.mark.parametrize(("name", "count"), TIMM)
def test_stages_of_timm_names(name, count):
    import timm

    net = nn.Module()
    net.backbone = timm.create_model(name, features_only=True)
    stages = opt.find_stages(net)
    assert stages.count == count, sorted(set(stages.depth.values()))
    order = list(stages.depth.values())
    assert order == sorted(order)


def test_frozen_stages_keep_weights_and_statistics():
    net = Tiny()
    recipe = OptimRecipe(freeze_stages=2, lr=0.1)
    held = opt.freeze(net, recipe)
    optimizer = opt.make_optimizer(net, recipe)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    net.train()
    opt.hold(held)
    net(torch.randn(4, 3, 8, 8)).square().mean().backward()
    optimizer.step()
    moved = {k for k, v in net.state_dict().items() if not torch.equal(v, before[k])}
    assert moved
    assert all(k.startswith(("backbone.layer2", "head")) for k in moved), moved
    assert "backbone.layer2.1.running_mean" in moved


def test_freeze_norm_keeps_every_batch_norm():
    net = Tiny()
    held = opt.freeze(net, OptimRecipe(freeze_norm=True))
    assert len(held) == 3
    assert not net.backbone.bn1.weight.requires_grad
    assert net.backbone.conv1.weight.requires_grad


def test_freezing_more_than_there_is():
    with pytest.raises(UsageError, match="has 3 stages"):
        opt.freeze(Tiny(), OptimRecipe(freeze_stages=9))


def test_lr_is_set_per_group():
    net = Tiny()
    optimizer = opt.make_optimizer(net, OptimRecipe(name="adamw", lr=1.0, head_lr_scale=10))
    opt.set_lr(optimizer, 0.5)
    assert sorted(g["lr"] for g in optimizer.param_groups) == [0.5, 5.0]


def test_average_follows_the_formula_and_restores():
    net = nn.Linear(1, 1, bias=False)
    net.weight.data.fill_(0.0)
    average = AveragedWeights(net, 0.9)
    expected = 0.0
    for n in range(40):
        net.weight.data.fill_(float(n))
        average.update(net)
        decay = min(0.9, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * n
    assert average.average["weight"].item() == pytest.approx(expected, rel=1e-5)
    with average.applied(net):
        assert net.weight.item() == pytest.approx(expected, rel=1e-5)
    assert net.weight.item() == 39.0


def test_average_copies_counters():
    net = nn.BatchNorm1d(2)
    average = AveragedWeights(net, 0.5)
    net.num_batches_tracked.fill_(7)
    average.update(net)
    assert average.average["num_batches_tracked"].item() == 7
