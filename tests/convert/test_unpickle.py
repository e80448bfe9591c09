"""Foreign checkpoint files: what is read, what is refused, and at what cost."""

import argparse
import pickle
import random
import resource
import time
from collections import OrderedDict, defaultdict
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from pixelwise.convert.files import read_checkpoint, read_state
from pixelwise.convert.unpickle import Foreign
from pixelwise.errors import ModelError
from tests.convert import hostile
from tests.convert.hostile import STATE

MEMORY = 512 << 20  # above what the process has, whatever the file declares
SECONDS = 20  # of this process's own time; a million instructions take about 1, objects 5


@contextmanager
def bounds():
    """A limit on address space and time of the process, for the body only."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * 4096 + MEMORY, before[1]))
    start = time.process_time()
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
    assert time.process_time() - start < SECONDS


def refuse(path: Path, content: bytes, message: str) -> str:
    path.write_bytes(content)
    with bounds(), pytest.raises(ModelError, match=message) as caught:
        read_checkpoint(path)
    assert str(caught.value).startswith(str(path))
    assert len(str(caught.value)) < 500 + len(str(path))
    return str(caught.value)


@pytest.mark.parametrize("name", hostile.UNSAFE)
def test_code_is_refused_and_not_run(tmp_path, monkeypatch, name) -> None:
    make, message = hostile.UNSAFE[name]
    content = make()
    monkeypatch.chdir(tmp_path)
    text = refuse(tmp_path / "a.pth", content, message)
    assert "refused: it asks" in text
    assert [p.name for p in tmp_path.iterdir()] == ["a.pth"]  # the gadgets would make "owned"


LONG = ("many objects", "many instructions", "copied list")


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[pytest.mark.slow] if n in LONG else []) for n in hostile.BROKEN],
)
def test_broken_and_forged_files_are_refused(tmp_path, name) -> None:
    make, message = hostile.BROKEN[name]
    refuse(tmp_path / "a.pth", make(), message)


def test_nothing_is_written_or_imported(tmp_path, monkeypatch) -> None:
    """A stranger's module is not even looked for."""
    (tmp_path / "trap.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    path = tmp_path / "a.pth"
    program = hostile.tensor()[:-1] + hostile.text("x") + b"ctrap\nThing\n)Rs."
    path.write_bytes(hostile.torch_zip(program, {"0": bytes(8), "../../evil": b"x"}))
    assert read_state(path)["a"].tolist() == [0, 0]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.pth", "trap.py"]
    assert not (tmp_path.parent / "evil").exists()


class HistoryBuffer:
    """As mmengine's: arrays and numpy numbers in an object."""

    def __init__(self) -> None:
        self.history = np.arange(3.0)
        self.last = np.float64(2.5)


class Config(dict):
    """As mmcv's: a dict with a class of its own."""


EXTRAS = {
    "history": HistoryBuffer(),
    "namespace": argparse.Namespace(lr=0.1, model="fcn_resnet50"),
    "config": Config(a=1),
    "scalar": np.float32(0.5),
    "path": Path("a/b"),
    "device": torch.device("cuda:1"),
    "size": torch.Size([1, 2]),
    "counts": defaultdict(int, a=1),
    "set": {1, 2},
    "frozen": frozenset(["a"]),
    "dtype": torch.float16,
    "array of text": np.array(["a", "b"]),
    "bytes": b"\x00\xff",
}


def write(path: Path, content, how: str) -> None:
    if how == "zip":
        torch.save(content, path)
    elif how == "legacy":
        torch.save(content, path, _use_new_zipfile_serialization=False)
    else:
        path.write_bytes(pickle.dumps(content, int(how)))


@pytest.mark.parametrize("name", EXTRAS)
@pytest.mark.parametrize("how", ["zip", "legacy", "0", "1", "2", "3", "4", "5"])
def test_what_frameworks_leave_beside_the_weights(tmp_path, name, how) -> None:
    """Every kind of object, in every format; protocols are those of plain pickles."""
    path = tmp_path / "a.bin"
    plain = how.isdigit()
    state = OrderedDict((k, v.numpy() if plain else v) for k, v in STATE.items())
    if how in "01" and name in ("array of text", "device", "dtype"):
        pytest.skip("not written in this protocol by anyone")
    write(path, {"state_dict": state, "meta": {"extra": EXTRAS[name], "epoch": 3}}, how)
    found = read_checkpoint(path)
    assert {k: v.tolist() for k, v in found.state.items()} == {
        k: v.tolist() for k, v in STATE.items()
    }
    assert found.wrapper == ("state_dict",)
    assert found.about["meta"]["epoch"] == 3
    extra = found.about["meta"]["extra"]
    if name in ("scalar", "set", "frozen", "bytes"):
        assert extra == EXTRAS[name]
    if name == "namespace":
        assert isinstance(extra, Foreign)
        assert extra.attributes()["model"] == "fcn_resnet50"
    if name == "config":
        assert extra.items == {"a": 1}


@pytest.mark.parametrize(
    "dtype", ["f2", "f4", "f8", ">f4", ">f8", "i1", "i2", "i4", "i8", ">i8", "u1", "?"]
)
@pytest.mark.parametrize("how", ["2", "5", "npz", "npz, compressed"])
def test_arrays_of_every_kind(tmp_path, dtype, how) -> None:
    """Byte orders and orders of dimensions included."""
    rng = np.random.default_rng(0)
    arrays = {
        "c": (rng.random((3, 4)) * 9).astype(dtype),
        "f": np.asfortranarray((rng.random((3, 4)) * 9).astype(dtype)),
        "scalar": np.array(1, dtype),
        "empty": np.zeros((0, 3), dtype),
    }
    path = tmp_path / "a"
    if how in "25":
        path.write_bytes(pickle.dumps(arrays, int(how)))
    else:
        path.write_bytes(hostile.npz(arrays, compressed="," in how))
    state = read_state(path)
    for name, value in arrays.items():
        assert np.array_equal(state[name].numpy(), value)
        assert state[name].shape == value.shape


def test_arrays_that_python_2_pickled(tmp_path) -> None:
    """Their bytes are text, as in the model zoos of Detectron and detectron2."""
    values = np.arange(200, dtype=np.float32)
    path = tmp_path / "R-50.pkl"
    path.write_bytes(hostile.array(b"f4", (200,), values.tobytes()))
    assert read_state(path)["a"].tolist() == values.tolist()


DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int8, torch.int64]


@pytest.mark.parametrize("how", ["zip", "legacy"])
def test_tensors_of_every_kind(tmp_path, how) -> None:
    """Types, views, shared storages, parameters."""
    base = torch.arange(24.0)
    content = {f"{dtype}": torch.arange(5).to(dtype) for dtype in DTYPES}
    content |= {
        "bool": torch.tensor([True, False]),
        "part": base[3:9],
        "transposed": base.reshape(4, 6).T,
        "parameter": nn.Parameter(base.reshape(2, 12)),
        "scalar": torch.tensor(3),
        "empty": torch.empty(0, 4),
    }
    path = tmp_path / "a.pth"
    write(path, content, how)
    state = read_state(path)
    assert list(state) == list(content)
    assert all(torch.equal(state[k], v.detach()) for k, v in content.items())
    assert all(state[k].dtype == v.dtype for k, v in content.items())


def test_the_first_format_of_torch(tmp_path) -> None:
    path = tmp_path / "a.pth"
    path.write_bytes(hostile.old_tar())
    assert read_state(path)["a"].tolist() == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.parametrize("how", ["zip", "legacy"])
def test_a_network_that_was_pickled_whole(tmp_path, how) -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Sequential(nn.BatchNorm2d(2)))
    path = tmp_path / "a.pth"
    write(path, {"model": net, "epoch": 1}, how)
    state = read_state(path)
    assert list(state) == list(net.state_dict())
    assert torch.equal(state["0.weight"], net.state_dict()["0.weight"])


@pytest.mark.parametrize(
    "content",
    [
        {"blobs": {"a": np.ones(2, "f4"), "b": np.zeros(3, "f4")}, "cfg": "MODEL:\n"},
        {"a": {"weights": np.ones((2, 2), "f4"), "biases": np.ones(2, "f4")}},
        {"a": [np.ones((2, 2), "f4"), np.ones(2, "f4")]},
    ],
    ids=["blobs", "named parts", "pairs"],
)
def test_blobs_as_ports_of_caffe_have_them(tmp_path, content) -> None:
    path = tmp_path / "a.pkl"
    path.write_bytes(pickle.dumps(content, 2))
    expected = {"a", "b"} if "blobs" in content else {"a.weight", "a.bias"}
    assert set(read_state(path)) == expected


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.", "module._orig_mod."])
def test_prefixes_come_off(tmp_path, prefix) -> None:
    path = tmp_path / "a.safetensors"
    save_file({f"{prefix}{k}": v for k, v in STATE.items()}, path)
    assert set(read_state(path)) == set(STATE)


def test_the_plain_weights_come_before_averaged_ones(tmp_path) -> None:
    path = tmp_path / "a.pth"
    other = {k: v + 1 for k, v in STATE.items()}
    torch.save({"model_ema": other, "ema_state_dict": other, "model": STATE, "epoch": 4}, path)
    found = read_checkpoint(path)
    assert torch.equal(found.state["layer.weight"], STATE["layer.weight"])
    assert {"model_ema", "ema_state_dict", "epoch"} <= set(found.about)
    torch.save({"ema": other}, path)
    assert torch.equal(read_state(path)["layer.weight"], other["layer.weight"])


def real_files(folder: Path) -> list[Path]:
    """One good file of each format."""
    content = {"state_dict": STATE, "meta": {"x": EXTRAS["namespace"], "h": HistoryBuffer()}}
    arrays = {k: v.numpy() for k, v in STATE.items()}
    files = {
        "zip": hostile.saved(content),
        "legacy": hostile.legacy(content),
        "tar": hostile.old_tar(),
        "pickle2": pickle.dumps({"model": arrays, "meta": EXTRAS["scalar"]}, 2),
        "pickle5": pickle.dumps({"model": arrays, "log": EXTRAS["config"]}, 5),
        "pickle0": pickle.dumps({"model": arrays}, 0),
        "npz": hostile.npz(arrays),
        "npz_compressed": hostile.npz(arrays, compressed=True),
    }
    for name, data in files.items():
        (folder / name).write_bytes(data)
    save_file(STATE, folder / "safetensors")
    return sorted(folder.iterdir())


def fuzz(folder: Path, rounds: int, seed: int) -> tuple[int, int]:
    """Mutate real files; each is read or refused, never anything else. Returns both counts."""
    rng = random.Random(seed)
    originals = [(path.name, path.read_bytes()) for path in real_files(folder)]
    outcomes = [0, 0]
    path = folder / "mutated.pth"
    for i in range(rounds):
        _, data = originals[i % len(originals)]
        path.write_bytes(mutate(bytearray(data), rng))
        try:
            state = read_checkpoint(path).state
            assert all(float(v.double().sum()) is not None for v in state.values())
            outcomes[0] += 1
        except ModelError:
            outcomes[1] += 1
    return outcomes[0], outcomes[1]


def mutate(data: bytearray, rng: random.Random) -> bytes:
    """Flipped bytes, a cut end, a removed, repeated or exchanged stretch."""
    kind = rng.randrange(5)
    at, length = rng.randrange(len(data)), rng.randrange(1, 40)
    if kind == 0:
        del data[at:]
    elif kind == 1:
        del data[at : at + length]
    elif kind == 2:
        data[at:at] = data[at : at + length] * rng.randrange(1, 4)
    else:
        for _ in range(rng.choice([1, 1, 2, 8])):
            data[rng.randrange(len(data))] = rng.choice(
                [0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)]
            )
    return bytes(data)


def test_fuzzed_files_are_read_or_refused(tmp_path) -> None:
    with bounds():
        read, refused = fuzz(tmp_path, 900, seed=0)
    assert read > 50
    assert refused > 300


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 9))
def test_many_more_fuzzed_files(tmp_path, seed) -> None:
    read, refused = fuzz(tmp_path, 10_000, seed)
    assert read > 500
    assert refused > 3000
