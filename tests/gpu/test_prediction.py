"""Segmenting pictures on the GPU: what comes out is what the CPU says."""

import json
from copy import deepcopy

import numpy as np
import pytest
import torch
from PIL import Image

from pixelwise import checkpoint
from pixelwise.cli import run as run_cli
from pixelwise.export import read_passport
from pixelwise.predict import Segmenter
from pixelwise.spec import InputSpec, ResizeRule
from pixelwise.systems import SYSTEMS
from tests.data.made_up import picture
from tests.gpu.device import DEVICE, GPU, assert_near, differing_pixels, needs_compiler
from tests.gpu.drawn import drawn
from tests.gpu.test_systems import spread_out
from tests.systems.test_contract import K

pytestmark = GPU

INPUT = InputSpec(resize=ResizeRule(short_side=96, long_side=160, pad_divisor=32))
CLASSES = tuple(f"class {i}" for i in range(K))
INSTANCE = ["mask_rcnn", "fcis", "yolact", "solov2", "polarmask", "blendmask"]
SEMANTIC = ["deeplabv3plus", "bisenet", "unet"]


def pixels(seed=0, size=(72, 100)):
    return np.asarray(picture(seed, size))


def pair(name, dtype=torch.float64):
    """The same model on both devices; in float64 the order of equal scores is no matter of luck."""
    system = spread_out(name, dtype=dtype)
    about = {"name": name, "classes": CLASSES, "input": INPUT, "task": SYSTEMS[name].task}
    found = [Segmenter(deepcopy(system), device=place, **about) for place in (DEVICE, "cpu")]
    if dtype == torch.float64:
        for segmenter in found:
            forward = segmenter.system.forward
            segmenter.system.forward = lambda x, own=forward: own(x.double())
    return found


def assert_same_results(found, expected, *, few=0):
    """Labels differ in `few` pixels at most; objects are the same, masks up to three pixels."""
    if expected.instances is None:
        count = int((found.semantic.labels != expected.semantic.labels).sum())
        assert count <= few, f"{count} of {expected.semantic.labels.numel()} labels differ"
        if expected.semantic.probs is not None:
            assert_near(found.semantic.probs, expected.semantic.probs, tol=1e-4, what="probs")
        return
    got, want = found.instances, expected.instances
    assert len(got) == len(want)
    for part in ("labels", "scores", "boxes"):
        assert_near(getattr(got, part), getattr(want, part), tol=1e-5, what=part)
    counts = differing_pixels(got.masks, want.masks)
    assert max(counts, default=0) <= 3, f"pixels that differ by mask: {counts}"


@pytest.mark.parametrize("name", INSTANCE)
@pytest.mark.parametrize(
    "options", [{}, {"tile": 64}, {"tta": [1.0, 1.25]}], ids=["whole", "tiles", "tta"]
)
def test_objects(name, options):
    there, here = pair(name)
    options = {"score_thresh": 0.05, **options}
    expected = here.predict(pixels(), **options)
    assert len(expected.instances), "a test without objects says nothing"
    assert_same_results(there.predict(pixels(), **options), expected)


@pytest.mark.parametrize("name", SEMANTIC)
@pytest.mark.parametrize(
    "options",
    [
        {"with_probs": True},
        {"tile": 64},
        {"tile": 64, "seams": "semseg"},
        {"tile": 64, "seams": "mmseg"},
        {"tta": [0.75, 1.0]},
        {"crf": True},
        {"batch_size": 2},
    ],
    ids=["probs", "tiles", "semseg", "mmseg", "tta", "crf", "batch"],
)
def test_label_maps(name, options):
    there, here = pair(name)
    pictures = [pixels(0), pixels(1), pixels(2, (60, 50))]
    found = there.predict(pictures, **options)
    for got, want in zip(found, here.predict(pictures, **options), strict=True):
        assert_same_results(got, want, few=7)


@pytest.mark.parametrize("name", ["deeplabv3plus", "bisenet", "yolact"])
def test_folded_norms(name):
    there, here = pair(name, torch.float32)
    there.fuse()
    image = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found, plain = there._fused(image.to(DEVICE)), there.system(image.to(DEVICE))
        expected = here.system(image)
    assert_near(found[-1], plain[-1], tol=1e-3, what="folded and plain")
    assert_near(plain[-1], expected[-1], tol=1e-3, what="GPU and CPU")


@pytest.mark.parametrize(
    ("name", "backend"),
    [
        ("deeplabv3plus", "aot_eager"),
        ("mask_rcnn", "aot_eager"),
        pytest.param("unet", "inductor", marks=needs_compiler),
        pytest.param("yolact", "inductor", marks=needs_compiler),
    ],
)
@torch.no_grad()
def test_compiled_forward(name, backend):
    """`torch.compile` takes the branches that exporting takes; generating code is what is slow."""
    system = spread_out(name).eval().to(DEVICE)
    images = drawn(2, 3, 64, 96).to(DEVICE)
    expected = system(images)
    found = torch.compile(system, backend=backend)(images)
    assert_near(found, expected, tol=1e-5, what=name)


@pytest.mark.parametrize("name", ["deeplabv3plus", "mask_rcnn"])
def test_command_line(name, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    system = spread_out(name, dtype=torch.float32)
    path = tmp_path / "model.safetensors"
    checkpoint.save(path, system, name=name, classes=CLASSES, input=INPUT)
    Image.fromarray(pixels()).save("a.png")
    for device in (DEVICE.type, "cpu"):
        words = ["predict", str(path), "a.png", "--out", device, "--score", "0.05", "--json"]
        assert run_cli([*words, "--device", device]) == 0
        document = json.loads(capsys.readouterr().out)
        assert document["device"].startswith(device)
        assert (tmp_path / device / "a.png").exists()
    words = ["bench", str(path), "--size", "96x128", "--rounds", "2", "--json"]
    assert run_cli([*words, "--device", DEVICE.type]) == 0
    timing = json.loads(capsys.readouterr().out)
    assert timing["device"].startswith(DEVICE.type)
    assert min(timing["gflops"], timing["peak_memory_mb"], timing["stages_ms"]["network"]) > 0


def test_doctor_names_the_device(capsys):
    assert run_cli(["doctor", "--json"]) == 0
    assert DEVICE.type in json.loads(capsys.readouterr().out)["devices"]


@pytest.mark.parametrize("suffix", [".pt2", ".onnx"])
@pytest.mark.parametrize("name", ["unet", "yolact"])
def test_a_system_on_the_device_becomes_a_file_for_all(name, suffix, tmp_path):
    """The file runs on the CPU, with the CPU's numbers, and the system stays where it is."""
    there, here = pair(name, torch.float32)
    path = there.export(tmp_path / f"m{suffix}", size=(64, 96))
    assert next(there.system.parameters()).device.type == DEVICE.type
    assert read_passport(path)["classes"] == list(CLASSES)
    generator = torch.Generator().manual_seed(0)  # of the example that `export` traces
    images = torch.randn(1, 3, 64, 96, generator=generator)
    if suffix == ".onnx":
        runtime = pytest.importorskip("onnxruntime")
        found = runtime.InferenceSession(str(path)).run(None, {"images": images.numpy()})
    else:
        found = torch.export.load(path).module()(images)
    with torch.no_grad():
        expected = here.system(images)
    assert_near([torch.as_tensor(x) for x in found], list(expected), tol=1e-4, what=name)
