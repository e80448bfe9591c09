"""Where a checkpoint is from is found out from its keys and shapes alone."""

import re

import pytest
import torch

from pixelwise.convert.recognise import matches_of, nearest_row, recognise
from pixelwise.convert.rules import translate
from pixelwise.errors import ConversionError, UsageError
from pixelwise.systems import SYSTEMS, configure, create
from tests.fixtures import fixture_params, load_fixture

# Pattern of a fixture's name → origin and the first row of its system. A system that is not in the
# table yet cannot be recognised.
EXPECTED = {
    r"caffe_layers_deeplab_largefov": ("caffe", "deeplabv1"),
    r"caffe_layers_fcn": ("caffe", "fcn"),
    r"coincheung_bisenet": ("coincheung", "bisenet"),
    r"deeplab_pytorch_(deeplabv\dp?l?u?s?)": ("deeplab-pytorch", r"\1"),
    r"efficientfcn": ("efficientfcn", "efficientfcn"),
    r"mmseg_bisenetv1": ("mmseg", "bisenet"),
    r"(mmseg|smp|torchvision|semseg|zijundeng)_(deeplabv3plus|deeplabv3|fcn|pspnet|unet|gcn)": (
        r"\1",
        r"\2",
    ),
    r"detectron2_maskrcnn": ("detectron2", "mask_rcnn"),
    r"mmdet_maskrcnn_.*pafpn": ("mmdet", "panet"),
    r"mmdet_msrcnn": ("mmdet", "mask_scoring_rcnn"),
    r"(mmdet|torchvision)_maskrcnn": (r"\1", "mask_rcnn"),
    r"mmdet_(decoupled_)?solo": ("mmdet", "solo"),
    r"mmdet_yolact": ("mmdet", "yolact"),
    r"yolact": ("yolact", "yolact"),
    r"panet": ("panet", "panet"),
    r"fcis_r": ("fcis", "fcis"),
    r"blendmask": ("adelaidet", "blendmask"),
    r"polarmask_r": ("polarmask", "polarmask"),
}


def expected_of(name):
    for pattern, parts in EXPECTED.items():
        if match := re.match(pattern, name):
            return tuple(match.expand(part) for part in parts)
    return None


def shapes_of(fixture):
    """The state dict without memory: recognition looks at shapes."""
    return {key: torch.zeros(()).expand(shape) for key, shape, *_ in fixture.meta["state_dict"]}


@pytest.mark.parametrize("path", [*fixture_params("semantic"), *fixture_params("instance")])
def test_every_fixture_is_recognised(path) -> None:
    """By one converter only, with the classes that its name states."""
    fixture = load_fixture(path)
    expected = expected_of(fixture.name)
    if expected is None or "state_dict" not in fixture.meta:
        pytest.skip("no network of a system of ours")
    if expected[1] not in SYSTEMS:
        pytest.skip(f"{expected[1]} is not built yet")
    state = shapes_of(fixture)
    exact = [match for match in matches_of(state) if not match.problem]
    assert [(match.origin, match.name) for match in exact] == [expected]
    assert exact[0].share == 1
    if found := re.search(r"_(?:voc|cls|city|pcontext)(\d+)", fixture.name):
        assert exact[0].inferred["num_classes"] == int(found[1])
    if found := re.search(r"_r(\d+)_|resnet(\d+)", fixture.name):
        assert exact[0].inferred["backbone"] == f"resnet{found[1] or found[2]}"


def small_state(name="pspnet", **settings):
    net = create(name, **{"num_classes": 3, "backbone": "resnet18", **settings})
    return net.state_dict()


def test_what_is_no_checkpoint_of_ours_is_said() -> None:
    with pytest.raises(ConversionError, match=r"no converter knows these keys .* fc\.weight"):
        recognise({"fc.weight": torch.zeros(2, 2)})


def test_our_own_names_belong_to_no_other_project() -> None:
    with pytest.raises(ConversionError):
        recognise(small_state())


def test_an_unknown_origin_lists_the_known_ones() -> None:
    with pytest.raises(UsageError, match="mmseg, semseg, smp"):
        recognise({}, origin="somebody", name="pspnet")


def semseg_pspnet():
    from pixelwise.convert.pspnet import ORIGINS
    from pixelwise.convert.rules import invert

    net = create("pspnet", num_classes=3, backbone="resnet18", branch_width=8, head_width=8)
    rules = ORIGINS["semseg"].rules
    return invert(rules, net.state_dict()), rules, net


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.update({"extra.weight": torch.zeros(1)}), "pspnet of semseg"),
        (lambda s: s.pop("cls.0.weight"), r"cls\.0\.weight"),
        (lambda s: s.update({"cls.4.bias": torch.zeros(9)}), r"cls\.4\.bias \[9\]"),
    ],
    ids=["surplus", "missing", "shape"],
)
def test_what_does_not_fit_is_named(change, message) -> None:
    state, _, _ = semseg_pspnet()
    assert recognise(state).origin == "semseg"
    change(state)
    with pytest.raises(ConversionError, match=message):
        recognise(state, name="pspnet")


def test_a_partial_load_takes_the_closest() -> None:
    state, rules, net = semseg_pspnet()
    state["extra.weight"] = torch.zeros(1)
    with pytest.raises(ConversionError):
        recognise(state)
    match = recognise(state, partial=True)
    assert (match.origin, match.name) == ("semseg", "pspnet")
    assert match.share == pytest.approx(1 - 1 / len(state))
    state.pop("extra.weight")
    assert translate(rules, state, net.state_dict()).sources


@pytest.mark.parametrize(
    "row", ["deeplabv3_resnet50", "yolactpp_resnet50", "mask_rcnn_resnet50_c4"]
)
def test_a_row_is_its_own_nearest(row) -> None:
    """Whatever the classes."""
    first = next(name for name, e in SYSTEMS.items() if e.system is SYSTEMS[row].system)
    assert nearest_row(first, configure(row, {"num_classes": 7})) == row
