import pytest
import torch
from torch import Tensor

from pixelwise.convert.backbones import _fill, _rules_for
from pixelwise.convert.vgg import sequence_indices
from pixelwise.nn.backbones import build_backbone
from pixelwise.nn.backbones.vgg import convolution_names


def test_places_of_the_convolutions_in_torchvisions_sequence() -> None:
    assert sequence_indices("vgg16") == [0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28]
    assert sequence_indices("vgg16", last=3) == [0, 2, 5, 7, 10, 12, 14]
    assert sequence_indices("vgg16", first=4, last=4) == [0, 2, 4]
    assert convolution_names("vgg16")[6:9] == ["conv3_3", "conv4_1", "conv4_2"]


@pytest.mark.parametrize("name", ["vgg11", "vgg16"])
def test_timms_classifier_fills_the_trunk(name: str) -> None:
    """At a size that no pool rounds, our trunk computes what timm's does."""
    import timm

    torch.manual_seed(0)
    donor = timm.create_model(name, num_classes=3).eval()
    ours = build_backbone(name, levels=(5,)).eval()
    line = _fill([ours], dict(donor.state_dict()), _rules_for(ours, donor.state_dict()))
    assert "left out, under head, pre_logits" in line
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(ours(images)[0], donor.features(images), rtol=1e-4, atol=1e-4)


def test_torchvisions_and_caffes_names_fill_the_same_trunk() -> None:
    donor = build_backbone("vgg16", levels=(5,))
    caffe: dict[str, Tensor] = {**donor.state_dict(), "fc8_voc12.weight": torch.zeros(1)}
    torchvision = {
        f"features.{i}.{kind}": caffe[f"{conv}.{kind}"]
        for i, conv in zip(sequence_indices("vgg16"), convolution_names("vgg16"), strict=True)
        for kind in ("weight", "bias")
    }
    torchvision["classifier.6.weight"] = torch.zeros(2, 4)
    for state in (caffe, torchvision):
        ours = build_backbone("vgg16", levels=(3, 5), style="fcn")
        _fill([ours], state, _rules_for(ours, state))
        for key, value in ours.state_dict().items():
            assert torch.equal(value, donor.state_dict()[key])
