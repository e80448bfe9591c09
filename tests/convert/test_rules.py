import pickle
from collections import OrderedDict

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from pixelwise.convert import load, origins
from pixelwise.convert.files import read_state, unwrap
from pixelwise.convert.resnet import (
    deeplab_pytorch_rules,
    detectron2_rules,
    infer_resnet,
    torchvision_rules,
)
from pixelwise.convert.rules import (
    Drop,
    Permute,
    Rename,
    Reshape,
    Rows,
    Split,
    invert,
    prefixed,
    roll,
    skip,
    translate,
)
from pixelwise.errors import ConversionError, ModelError, UsageError
from pixelwise.nn.backbones import build_backbone

T = torch.arange(6.0).view(2, 3)


@pytest.mark.parametrize(
    ("rule", "key", "target", "expected"),
    [
        (Rename(r"a\.(\d)\.", r"b.\1."), "a.3.weight", "b.3.weight", T),
        (Rename(r"a\.(\d)\.c(\d)\.", r"b\2.x\1."), "a.3.c5.weight", "b5.x3.weight", T),
        (Permute("a", "b"), "a", "b", T.T),
        (Rows("a", "b", roll(1)), "a", "b", T[[1, 0]]),
        (Rows("a", "b", skip(1)), "a", "b", T[1:]),
        (Reshape("a", "b", lambda s: (*s, 1)), "a", "b", T[..., None]),
    ],
)
def test_one_tensor_moves(rule, key, target, expected) -> None:
    result = translate([rule], {key: T}, {target: torch.empty(expected.shape)})
    assert list(result.state) == [target]
    assert torch.equal(result.state[target], expected)
    assert result.sources == {target: key}


@pytest.mark.parametrize(
    ("rule", "state"),
    [
        (Rename(r"a\.(\d)\.c(\d)\.", r"b\2.x\1."), {"a.3.c5.weight": T}),
        (Rename(r"a\.weight$", "b.w"), {"a.weight": T}),
        (Permute("a", "b", (2, 0, 1)), {"a": torch.rand(2, 3, 4)}),
        (Rows("a", "b", roll(2)), {"a": torch.rand(5, 2)}),
        (Reshape("a", "b", lambda s: (6,), lambda s: (2, 3)), {"a": T}),
    ],
)
def test_rules_that_only_rename_or_reorder_invert(rule, state) -> None:
    (key,) = state
    moved = rule.apply(state[key])
    target = translate([rule], state, {_target(rule, key): torch.empty(moved.shape)})
    back = invert([rule], target.state)
    assert list(back) == [key]
    assert torch.equal(back[key], state[key])


def _target(rule: Rename, key: str) -> str:
    import re

    match = re.match(rule.pattern, key)
    assert match is not None
    return match.expand(rule.to) + key[match.end() :]


@pytest.mark.parametrize(
    ("rule", "why"),
    [
        (Rename(r"a[._](\d)", r"b\1"), "a choice outside a group is lost"),
        (Rename(r"a(\d)", "b"), "the group is lost"),
        (Rename(r"a(\d)", r"b\1\1"), "the group comes twice"),
        (Rows("a", "b", skip(1)), "rows are gone"),
        (Reshape("a", "b", tuple), "no way back is given"),
    ],
)
def test_what_cannot_be_undone_is_refused(rule, why) -> None:
    with pytest.raises(ConversionError):
        invert([rule], {"b1": T, "b": T})


def test_split_goes_to_several_places() -> None:
    rules = [Split(r"qkv\.", ("q.", "k.")), Split(r"v\.", ("x.", "y."), dim=1, sizes=(1, 2))]
    source = {"qkv.weight": T, "v.weight": T}
    wanted = {"q.weight": T[:1], "k.weight": T[1:], "x.weight": T[:, :1], "y.weight": T[:, 1:]}
    state = translate(rules, source, wanted).state
    assert all(torch.equal(state[key], value) for key, value in wanted.items())


@pytest.mark.parametrize(
    ("rules", "source", "wanted", "message"),
    [
        ([], {"a": T}, {}, "no rule covers: a"),
        ([Rename("a", "b"), Drop("a", "?")], {"a": T}, {"b": T}, "several rules cover: a"),
        ([Rename("a", "b")], {"a": T}, {}, "a → b"),
        ([Rename("a", "b")], {"a": T}, {"b": T, "c": T}, "nothing fills: c"),
        ([Rename("a", "b")], {"a": T}, {"b": T[:1]}, r"\[2, 3\] → b \[1, 3\]"),
        ([Rename("a|c", "b")], {"a": T, "c": T}, {"b": T}, "filled twice: b"),
    ],
)
def test_translation_is_total(rules, source, wanted, message) -> None:
    with pytest.raises(ConversionError, match=message):
        translate(rules, source, wanted)


def test_a_list_of_problems_is_cut() -> None:
    with pytest.raises(ConversionError, match=r"30 source keys.*and 18 more"):
        translate([], {f"k{i}": T for i in range(30)}, {})


def test_part_of_a_source_fills_a_part() -> None:
    source = {"a.weight": T, "b.weight": T}
    rules = [Rename("a", "x"), Rename("b", "y")]
    result = translate(rules, source, {"x.weight": T}, partial=True)
    assert list(result.state) == ["x.weight"]
    assert list(result.dropped) == ["b.weight"]


def test_counters_of_batch_norms() -> None:
    counter = torch.tensor(5)
    rules = [Rename("bn", "norm")]
    live = translate(
        rules, {"bn.num_batches_tracked": counter}, {"norm.num_batches_tracked": counter}
    )
    assert live.state["norm.num_batches_tracked"] == 5
    frozen = translate(rules, {"bn.num_batches_tracked": counter}, {})
    assert not frozen.state
    assert "frozen" in frozen.dropped["bn.num_batches_tracked"]
    absent = translate(rules, {}, {"norm.num_batches_tracked": counter})
    assert absent.state["norm.num_batches_tracked"] == 0


def test_prefixes_are_literal() -> None:
    rules = prefixed([Rename(r"a\.", "b."), Drop("fc", "?"), Split("s", ("t", "u"))], "m.x.", "n.")
    source = {"m.x.a.w": T, "m.x.fc": T, "m.x.s": T}
    state = translate(rules, source, {"n.b.w": T, "n.t": T[:1], "n.u": T[1:]}).state
    assert set(state) == {"n.b.w", "n.t", "n.u"}
    with pytest.raises(ConversionError):
        translate(rules, {"mix.a.w": T}, {"n.b.w": T})


@pytest.mark.parametrize("depth", ["resnet18", "resnet50", "resnext50_32x4d"])
@pytest.mark.parametrize(
    ("rules", "style", "stage", "first"),
    [
        (torchvision_rules(), "pytorch", r"layer(\d)", 1),
        (torchvision_rules(stem="sequence"), "v1c", r"layer(\d)", 1),
        (torchvision_rules(stem="timm_deep", avg_down=True), "v1d", r"layer(\d)", 1),
        (torchvision_rules(stem="sequence", stem_name="layer0"), "semseg", r"layer(\d)", 1),
        (detectron2_rules(), "caffe", r"res(\d)", 2),
    ],
    ids=["torchvision", "mmseg", "timm-d", "semseg", "detectron2"],
)
def test_resnet_tables_go_both_ways_and_name_the_depth(depth, rules, style, stage, first) -> None:
    with torch.device("meta"):
        ours = build_backbone(depth, style=style).state_dict()
    theirs = invert(rules, ours)
    assert len(theirs) == len(ours)
    assert infer_resnet(theirs, stage=stage, first=first) == depth
    assert set(translate(rules, theirs, ours).state) == set(ours)


def test_deeplab_pytorch_blocks_count_from_one() -> None:
    with torch.device("meta"):
        ours = build_backbone("resnet50", style="deeplab-pytorch").state_dict()
    theirs = invert(deeplab_pytorch_rules(), ours)
    assert "layer2.block1.shortcut.conv.weight" in theirs
    assert "layer4.block6.increase.bn.running_var" in theirs
    assert set(translate(deeplab_pytorch_rules(), theirs, ours).state) == set(ours)


def test_an_unknown_resnet_is_described() -> None:
    with pytest.raises(ConversionError, match=r"blocks \(1,\)"):
        infer_resnet({"layer1.0.conv1.weight": torch.empty(8, 8, 3, 3)})


STATE = {"a.weight": torch.ones(2, 2), "a.bias": torch.zeros(2)}


@pytest.mark.parametrize(
    "content",
    [
        STATE,
        {"state_dict": STATE, "epoch": 3},
        {"model": {f"module.{k}": v for k, v in STATE.items()}},
        {"state_dict": {"model": STATE}},
        {"model": {k: v.numpy() for k, v in STATE.items()}, "__author__": "x"},
    ],
)
def test_wrappings_come_off(content) -> None:
    state = unwrap(content)
    assert set(state) == set(STATE)
    assert torch.equal(state["a.weight"], STATE["a.weight"])


@pytest.mark.parametrize("suffix", [".pth", ".safetensors", ".pkl"])
def test_files(tmp_path, suffix) -> None:
    path = tmp_path / f"weights{suffix}"
    if suffix == ".safetensors":
        save_file(STATE, path)
    elif suffix == ".pkl":
        arrays = OrderedDict((k, v.numpy()) for k, v in STATE.items())
        path.write_bytes(pickle.dumps({"model": arrays, "matching_heuristics": True}, protocol=2))
    else:
        torch.save({"state_dict": STATE}, path)
    state = read_state(path)
    assert {k: v.tolist() for k, v in state.items()} == {k: v.tolist() for k, v in STATE.items()}


class Trap:
    """What a hostile checkpoint may hold: running code when it is unpickled."""

    def __reduce__(self):
        return (exec, ("raise SystemExit('code of a checkpoint was run')",))


class Buffer:
    """What a training framework leaves in a checkpoint."""

    def __init__(self) -> None:
        self.values = [1, 2]


@pytest.mark.parametrize("extra", [Buffer(), nn.Linear(1, 1)], ids=["buffer", "module"])
@pytest.mark.parametrize("suffix", [".pth", ".pkl"])
def test_foreign_classes_become_stand_ins(tmp_path, suffix, extra) -> None:
    path = tmp_path / f"weights{suffix}"
    arrays = {k: np.asarray(v) for k, v in STATE.items()}
    if suffix == ".pkl":
        path.write_bytes(pickle.dumps({"model": arrays, "log": extra}, protocol=2))
    else:
        torch.save({"model": STATE, "log": extra}, path)
    if suffix == ".pkl" and isinstance(extra, nn.Module):
        pytest.skip("plain pickles hold no torch tensors")
    assert set(read_state(path)) == set(STATE)


@pytest.mark.parametrize("suffix", [".pth", ".pkl"])
def test_code_in_a_checkpoint_is_refused_and_not_run(tmp_path, suffix) -> None:
    path = tmp_path / f"weights{suffix}"
    if suffix == ".pkl":
        path.write_bytes(pickle.dumps({"model": {}, "log": Trap()}, protocol=2))
    else:
        torch.save({"model": STATE, "log": Trap()}, path)
    with pytest.raises(ModelError, match=r"asks to call .*exec"):
        read_state(path)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors", ".pkl"])
@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"<html>404</html>"])
def test_broken_files_are_named(tmp_path, suffix, content) -> None:
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=f"weights{suffix}"):
        read_state(path)


def test_a_missing_file_is_named(tmp_path) -> None:
    with pytest.raises(ModelError, match=r"none\.pth"):
        read_state(tmp_path / "none.pth")


def test_unknown_origins_and_systems() -> None:
    with pytest.raises(UsageError, match="it has mmseg, smp"):
        load({}, origin="somebody", name="deeplabv3plus")
    with pytest.raises(UsageError, match="did you mean deeplabv3plus"):
        origins("deeplabv3pluss")


def test_another_checkpoint_is_refused_with_its_keys() -> None:
    with pytest.raises(ConversionError, match=r"backbone\.conv1\.weight"):
        load(STATE, origin="mmseg", name="deeplabv3plus")
