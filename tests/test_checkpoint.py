"""Checkpoints: round trips, and what a wrong file is told."""

import json
import os
import pickle
import resource
import stat

import pytest
import safetensors.torch
import torch

from pixelwise import atomic, checkpoint
from pixelwise.errors import ModelError, UsageError
from pixelwise.spec import InputSpec, ResizeRule
from pixelwise.systems import create

SMALL = {"backbone": "resnet18", "aspp_width": 8, "decoder_width": 8, "low_level_width": 4}
SPEC = InputSpec(mean=(0.1, 0.2, 0.3), resize=ResizeRule(fixed=(32, 48), pad_divisor=2))


def small(num_classes=3):
    torch.manual_seed(0)
    return create("deeplabv3plus", num_classes=num_classes, **SMALL)


@pytest.fixture
def saved(tmp_path):
    net = small()
    path = tmp_path / "w.safetensors"
    checkpoint.save(
        path, net, name="deeplabv3plus", classes=["sky", "road", "car"], input=SPEC,
        metrics={"miou": 0.5, "undefined": float("nan")}, licence="CC0", colors=[(1, 2, 3)] * 3,
        recipe={"optim": {"lr": 0.1}},
    )  # fmt: skip
    return net, path


def test_round_trip(saved):
    net, path = saved
    loaded = checkpoint.load(path)
    assert loaded.name == "deeplabv3plus"
    assert loaded.task == "semantic"
    assert loaded.classes == ("sky", "road", "car")
    assert loaded.input == SPEC
    assert loaded.metrics == {"miou": 0.5}
    assert loaded.system.cfg == net.cfg
    assert loaded.header["licence"] == "CC0"
    assert loaded.header["colors"] == [[1, 2, 3]] * 3
    assert loaded.header["recipe"] == {"optim": {"lr": 0.1}}
    assert not loaded.system.training
    images = torch.randn(1, 3, 32, 48)
    torch.testing.assert_close(loaded.system(images), net.eval()(images), rtol=0, atol=0)


def test_settings_that_leave_the_weights_can_be_changed(saved):
    """Trained at stride 16, evaluated at 8 with twice the rates: the network of these settings."""
    net, path = saved
    changes = {"output_stride": 8, "aspp_rates": [12, 24, 36]}
    loaded = checkpoint.load(path, changes=changes)
    assert (loaded.system.cfg.output_stride, loaded.system.cfg.aspp_rates) == (8, (12, 24, 36))
    assert loaded.header["config"]["output_stride"] == 8
    other = create("deeplabv3plus", num_classes=3, **SMALL, **changes).eval()
    other.load_state_dict(net.state_dict())
    images = torch.randn(1, 3, 64, 64)
    assert torch.equal(loaded.system(images).logits, other(images).logits)
    assert not torch.allclose(loaded.system(images).logits, net.eval()(images).logits)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"output_strid": 8}, "did you mean 'output_stride'"),
        ({"output_stride": "eight"}, "output_stride='eight'"),
        ({"output_stride": 5}, "8, 16 or 32"),
        ({"aspp_width": 16}, "aspp_width=16 asks for other weights.*of another shape"),
        ({"aux_weight": 0.4}, "asks for other weights.*missing"),
        ({"image_pool": "none"}, "asks for other weights.*unexpected"),
    ],
)
def test_changes_that_do_not_fit_are_named(saved, changes, message):
    with pytest.raises(UsageError, match=message):
        checkpoint.load(saved[1], changes=changes)


def test_half_is_half_the_size_and_close(saved, tmp_path):
    net, path = saved
    half = tmp_path / "half.safetensors"
    checkpoint.save(half, net, name="deeplabv3plus", classes=["a", "b", "c"], input=SPEC, half=True)
    assert half.stat().st_size < 0.55 * path.stat().st_size
    for name, value in checkpoint.load(half).system.state_dict().items():
        assert value.dtype == net.state_dict()[name].dtype
        torch.testing.assert_close(value, net.state_dict()[name], rtol=1e-3, atol=1e-3)


def test_half_keeps_values_beyond_its_range(tmp_path):
    net = small()
    name = next(n for n, b in net.named_buffers() if n.endswith("running_var"))
    net.get_buffer(name).fill_(1e6)
    path = tmp_path / "h.safetensors"
    checkpoint.save(path, net, name="deeplabv3plus", classes=["a", "b", "c"], input=SPEC, half=True)
    assert checkpoint.load(path).system.get_buffer(name)[0] == 1e6


def truncated(path):
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def cut_header(path):
    path.write_bytes(path.read_bytes()[:30])


def emptied(path):
    path.write_bytes(b"")


def torch_file(path):
    torch.save({"model": torch.zeros(3)}, path)


def bare_pickle(path):
    path.write_bytes(pickle.dumps({"a": 1}))


def text(path):
    path.write_text("this is a text file, not weights")


def foreign(path):
    safetensors.torch.save_file({"a": torch.zeros(2)}, path)


def rewritten(path, **changes):
    tensors = safetensors.torch.load_file(path)
    header = checkpoint.read_header(path) | changes
    metadata = {"format": "pixelwise", "header": json.dumps(header)}
    safetensors.torch.save_file(tensors, path, metadata)


def newer(path):
    rewritten(path, format_version=99, pixelwise="9.9")


def other_system(path):
    rewritten(path, system="segment_anything_9")


def odd_config(path):
    rewritten(path, config={"num_classes": "many"})


def missing_tensor(path):
    header = checkpoint.read_header(path)
    tensors = safetensors.torch.load_file(path)
    del tensors["classify.weight"]
    metadata = {"format": "pixelwise", "header": json.dumps(header)}
    safetensors.torch.save_file(tensors, path, metadata)


def gone(path):
    path.unlink()


def folder(path):
    path.unlink()
    path.mkdir()


BROKEN = [
    (truncated, "truncated"),
    (cut_header, "truncated"),
    (emptied, "truncated or empty"),
    (torch_file, "not a pixelwise checkpoint.*convert"),
    (bare_pickle, "not a pixelwise checkpoint.*convert"),
    (text, "not a pixelwise checkpoint"),
    (foreign, "not a pixelwise checkpoint.*convert"),
    (newer, "newer than this one.*upgrade"),
    (other_system, "segment_anything_9.*upgrade"),
    (odd_config, "config does not fit"),
    (missing_tensor, r"1 missing \(classify.weight\)"),
    (gone, "no such checkpoint"),
    (folder, "a folder"),
]


@pytest.mark.parametrize(("damage", "message"), BROKEN, ids=[d.__name__ for d, _ in BROKEN])
def test_wrong_files_are_named_and_explained(saved, damage, message):
    _, path = saved
    damage(path)
    with pytest.raises(ModelError, match=message) as caught:
        checkpoint.load(path)
    assert str(path) in str(caught.value)
    assert caught.value.exit_code == 4


def test_a_full_disk_keeps_the_old_file(tmp_path):
    path = tmp_path / "state"
    atomic.write(path, b"old")

    def fill(file):
        file.write(b"half of the new o")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space") as caught:
        atomic.write(path, fill)
    assert caught.value.filename == str(path)
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["state"], "nothing half-written stays"


def test_torch_meets_a_full_disk(tmp_path):
    """torch.save hides the cause behind an error of its own; the limit stands for the disk."""
    path = tmp_path / "state"
    atomic.write(path, b"old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large") as caught:
            atomic.write(path, lambda file: torch.save(torch.zeros(10_000_000), file))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caught.value.filename == str(path)
    assert [p.name for p in tmp_path.iterdir()] == ["state"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_no_permission_names_the_file(tmp_path):
    tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    with pytest.raises(PermissionError) as caught:
        atomic.write(tmp_path / "x", b"")
    tmp_path.chmod(stat.S_IRWXU)
    assert caught.value.filename == str(tmp_path / "x")
