import sys

import pytest
import torch

from pixelwise.errors import ExportError, MissingExtraError
from pixelwise.export import (
    Passport,
    _compare,
    export_onnx,
    export_program,
    export_torch,
    open_dimensions,
    read_passport,
)
from pixelwise.spec import InputSpec
from pixelwise.systems import create

TINY = {"aspp_width": 8, "decoder_width": 8, "num_classes": 2}
PASSPORT = Passport(
    name="deeplabv3plus", task="semantic", classes=("sky", "road"), input=InputSpec()
)


@pytest.mark.parametrize(
    ("backbone", "dynamic"),
    [("test_resnet", "sizes32"), ("resnet18", "sizes"), ("test_convnext", "batch")],
)
def test_what_stays_open(backbone: str, dynamic: str) -> None:
    with torch.device("meta"):
        assert open_dimensions(create("deeplabv3plus", backbone=backbone, **TINY)) == dynamic


@pytest.mark.parametrize("name", ["bisenet", "efficientfcn", "gcn", "mask_rcnn"])
def test_sizes_stay_open_for_semantic_systems(name: str) -> None:
    with torch.device("meta"):
        system = create(name, backbone="resnet18")
    assert open_dimensions(system) == ("none" if name == "mask_rcnn" else "sizes")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("deeplabv1_msc", {"backbone": "test_vgg", "fc_width": 8, "branch_width": 8}),
        ("deeplabv2", {"backbone": "resnet18", "rates": (1, 2), "scales": (0.75,)}),
        ("deeplabv2_vgg16", {"backbone": "test_vgg", "branch_width": 8}),
    ],
)
def test_programs_follow_the_pools_and_scales_of_deeplab(name: str, options: dict) -> None:
    """Pools that round up and scaled images: `export_program` compares at a second size."""
    system = create(name, num_classes=2, **options)
    export_program(system, torch.randn(1, 3, 64, 96), dynamic="sizes")


def test_an_onnx_file_runs_at_other_sizes_and_says_what_it_is(tmp_path) -> None:
    runtime = pytest.importorskip("onnxruntime")
    system = create("deeplabv3plus", backbone="test_efficientnet", **TINY)
    path = export_onnx(system, tmp_path / "m.onnx", torch.randn(1, 3, 64, 96), passport=PASSPORT)
    session = runtime.InferenceSession(str(path))
    for shape in ((1, 3, 32, 64), (3, 3, 128, 64)):
        images = torch.randn(shape)
        found = session.run(["logits"], {"images": images.numpy()})[0]
        with torch.no_grad():
            expected = system(images).logits
        torch.testing.assert_close(torch.from_numpy(found), expected, rtol=1e-4, atol=1e-5)
    about = read_passport(path)
    assert about["classes"] == ["sky", "road"]
    assert about["config"]["backbone"] == "test_efficientnet"
    assert InputSpec.from_dict(about["input"]) == InputSpec()


def test_a_torch_program_carries_its_passport(tmp_path) -> None:
    system = create("deeplabv3plus", backbone="test_efficientnet", **TINY)
    images = torch.randn(1, 3, 32, 32)
    path = export_torch(system, tmp_path / "m.pt2", images, passport=PASSPORT, dynamic="none")
    assert read_passport(path)["name"] == "deeplabv3plus"
    with torch.no_grad():
        expected = system(images).logits
        torch.testing.assert_close(torch.export.load(path).module()(images)[0], expected)


def test_a_torch_program_of_a_timm_backbone_keeps_its_sizes_open(tmp_path) -> None:
    """ResNet-D's average pools round up; at stride 8 they have none."""
    system = create("deeplabv3plus", backbone="test_resnet", output_stride=8, **TINY)
    path = export_torch(system, tmp_path / "m.pt2", torch.randn(1, 3, 64, 96), passport=PASSPORT)
    assert read_passport(path)["dynamic"] == "sizes32"
    images = torch.randn(3, 3, 96, 64)
    with torch.no_grad():
        found = torch.export.load(path).module()(images)[0]
        torch.testing.assert_close(found, system(images).logits, rtol=1e-4, atol=1e-4)


def test_a_program_that_cannot_be_written_says_what_to_do(
    tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise ValueError("no such node")

    monkeypatch.setattr(torch.export, "save", refuse)
    system = create("deeplabv3plus", backbone="test_efficientnet", **TINY)
    images = torch.randn(1, 3, 32, 32)
    for dynamic, hint in (("batch", r"dynamic .*'none'"), ("none", "write .onnx instead")):
        with pytest.raises(ExportError, match=rf"no such node.*{hint}"):
            export_torch(system, tmp_path / "m.pt2", images, passport=PASSPORT, dynamic=dynamic)
    assert not list(tmp_path.iterdir())


# Systems with arithmetic on sizes of their own, on a backbone that takes any size.
OPEN = [
    ("bisenet", {}),
    ("bisenet", {"backbone": "xception39"}),
    ("deeplabv3plus", {"aspp_width": 8, "decoder_width": 8}),
    ("efficientfcn", {"codewords": 8, "codeword_width": 16}),
    ("gcn", {"kernel": 5}),
    ("gcn", {"kernel": 5, "upsample": "bilinear"}),
]
OTHER_SIZES = [(3, 3, 71, 45), (1, 3, 96, 64), (2, 3, 33, 130)]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "settings"), OPEN)
def test_a_program_with_open_sizes(name: str, settings: dict) -> None:
    system = create(name, **{"backbone": "resnet18", "num_classes": 2, **settings})
    program = export_program(system, torch.randn(1, 3, 64, 96))
    for shape in OTHER_SIZES:
        images = torch.randn(shape)
        with torch.no_grad():
            torch.testing.assert_close(program.module()(images).logits, system(images).logits)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "settings"), OPEN)
def test_an_onnx_file_with_open_sizes(name: str, settings: dict, tmp_path) -> None:
    runtime = pytest.importorskip("onnxruntime")
    system = create(name, **{"backbone": "resnet18", "num_classes": 2, **settings})
    path = export_onnx(system, tmp_path / "m.onnx", torch.randn(1, 3, 64, 96), passport=PASSPORT)
    session = runtime.InferenceSession(str(path))
    for shape in OTHER_SIZES:
        images = torch.randn(shape)
        found = torch.from_numpy(session.run(None, {"images": images.numpy()})[0])
        with torch.no_grad():
            _compare(system(images), [found], str(shape))


def test_a_wrong_output_is_no_export() -> None:
    wanted = [torch.ones(2, 3)]
    _compare(wanted, [torch.ones(2, 3) + 1e-6], "x")
    for wrong in (torch.ones(2, 3) + 1e-3, torch.ones(3, 2), torch.full((2, 3), float("nan"))):
        with pytest.raises(ExportError):
            _compare(wanted, [wrong], "x")


def test_a_failed_export_leaves_nothing(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime")
    system = create("deeplabv3plus", backbone="test_efficientnet", **TINY)

    def refuse(*_: object) -> None:
        raise ExportError("differs")

    monkeypatch.setattr(sys.modules["pixelwise.export"], "_verify_onnx", refuse)
    with pytest.raises(ExportError, match="differs"):
        export_onnx(system, tmp_path / "m.onnx", torch.randn(1, 3, 32, 32), passport=PASSPORT)
    assert not list(tmp_path.iterdir())


def test_missing_folder_and_missing_extra(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    system = create("deeplabv3plus", backbone="test_efficientnet", **TINY)
    images = torch.randn(1, 3, 32, 32)
    pytest.importorskip("onnxruntime")
    with pytest.raises(ExportError, match="no such folder"):
        export_onnx(system, tmp_path / "no" / "m.onnx", images, passport=PASSPORT)
    monkeypatch.setattr(sys.modules["pixelwise.export"], "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"pixelwise\[onnx\]"):
        export_onnx(system, tmp_path / "m.onnx", images, passport=PASSPORT)
