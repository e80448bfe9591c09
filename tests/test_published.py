"""`pw.load("name.tag")`: files as their projects publish them, from a server on this machine."""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import sys
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

import pixelwise as pw
from pixelwise import catalogue, checkpoint, download, published
from pixelwise.cli import run
from pixelwise.convert import origins
from pixelwise.convert.rules import invert
from pixelwise.errors import ModelError
from pixelwise.systems import create
from tests.fixtures import fill_state, fixture_params, load_fixture
from tests.serving import File, serve

State = dict[str, Tensor]
ENVIRONMENT = ("PIXELWISE_OFFLINE", "PIXELWISE_MIRROR", "http_proxy", "HTTP_PROXY", "all_proxy")


# --- files in the originals' formats -----------------------------------------------------------


def foreign(module: str, name: str, **state: Any) -> Any:
    """An instance of a class of another package, which is gone when the file is read."""
    for i in range(1, module.count(".") + 2):
        part = ".".join(module.split(".")[:i])
        sys.modules.setdefault(part, ModuleType(part))
    made = type(name, (), {"__module__": module})
    setattr(sys.modules[module], name, made)
    instance = made()
    instance.__dict__.update(state)
    return instance


def forget(*packages: str) -> None:
    for name in [n for n in sys.modules if n.split(".")[0] in packages]:
        del sys.modules[name]


def mmengine_file(state: State) -> bytes:
    """OpenMMLab's: torch's old format, log buffers in `message_hub`, weights in `state_dict`."""
    buffer = foreign("mmengine.logging.history_buffer", "HistoryBuffer", _max_length=1000)
    content = {
        "meta": {"CLASSES": ("a", "b"), "epoch": 1, "config": "model = dict()\n"},
        "state_dict": OrderedDict(state),
        "message_hub": {"log_scalars": {"train/loss": buffer}},
    }
    stream = io.BytesIO()
    torch.save(content, stream, _use_new_zipfile_serialization=False)
    forget("mmengine")
    return stream.getvalue()


def torchvision_file(state: State) -> bytes:
    """torchvision's: the state dict alone."""
    stream = io.BytesIO()
    torch.save(OrderedDict(state), stream, _use_new_zipfile_serialization=False)
    return stream.getvalue()


def detectron2_file(state: State) -> bytes:
    """detectron2's model zoo: a plain pickle of numpy arrays."""
    arrays = {key: value.numpy() for key, value in state.items()}
    return pickle.dumps({"model": arrays, "__author__": "Detectron2 Model Zoo"}, protocol=2)


def training_file(state: State) -> bytes:
    """A training script's: DataParallel's prefix, argparse's namespace, an optimizer's state."""
    from argparse import Namespace

    content = {
        "epoch": 3,
        "args": Namespace(lr=0.01, gpus=[0, 1]),
        "state_dict": {f"module.{key}": value for key, value in state.items()},
        "optimizer": {"state": {}, "param_groups": [{"lr": 0.01}]},
    }
    stream = io.BytesIO()
    torch.save(content, stream)
    return stream.getvalue()


# --- a catalogue whose only publisher is this machine ------------------------------------------


@pytest.fixture
def publish(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A function that serves one checkpoint under a name in a catalogue of its own."""
    for name in ENVIRONMENT:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("PIXELWISE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(download, "_FIRST_WAIT_S", 0.01)
    folder = tmp_path / "weights"
    (folder / "published").mkdir(parents=True)
    monkeypatch.setattr(catalogue, "_folder", lambda: folder)

    with serve({}) as server:

        def make(content: bytes, *, classes: int = 2, **row: Any) -> Any:
            system, origin = row.pop("system", "unet"), row.pop("origin", "mmseg")
            name = f"{system}_made.{origin}_up"
            suffix = row.pop("suffix", ".pth")
            server.files["file" + suffix] = File(content)
            digest = hashlib.sha256(content).hexdigest()[:8]
            source = server.url("file" + suffix)
            values = {"name": name, "system": system, "data": "things", "source": source}
            values |= {"sha256": digest, "metrics": {"miou": 0.5}} | row
            about = {
                "origin": origin, "project": "https://example.org", "code_licence": "MIT",
                "licence": "CC-BY-4.0", "commercial": "yes", "listed_in": "a list",
                "models": [values],
            }  # fmt: skip
            data = {"licence": "for research", "commercial": "unclear"}
            data["classes"] = [f"class {i}" for i in range(classes)]
            (folder / "published" / f"{origin}.json").write_text(json.dumps(about))
            (folder / "published" / "datasets.json").write_text(json.dumps({"things": data}))
            catalogue._published.cache_clear()
            return name, server

        yield make
    catalogue._published.cache_clear()


def small() -> State:
    """The state dict of a narrow U-Net under mmseg's names."""
    torch.manual_seed(0)
    network = create("unet", num_classes=2, widths=(4, 8), decoder_widths=(4,), **MMSEG)
    for value in network.state_dict().values():
        if value.is_floating_point():
            value.normal_().abs_() if value.ndim == 1 else value.normal_(std=0.1)
    rules = origins("unet")["mmseg"].rules
    assert callable(rules)
    return invert(rules(network.cfg), network.state_dict())


MMSEG = {
    "backbone": "unet", "padding": "same", "norm": "batch", "head_width": 4, "aux_weight": 0.0,
    "upsample": "bilinear", "head_kernel": 1,
}  # fmt: skip


@pytest.mark.parametrize(
    "write",
    [mmengine_file, training_file, torchvision_file, detectron2_file],
    ids=lambda f: f.__name__,
)
def test_a_published_file_becomes_a_model(publish, write: Callable[[State], bytes]) -> None:
    state = small()
    suffix = ".pkl" if write is detectron2_file else ".pth"
    name, server = publish(write(state), suffix=suffix)
    seg = pw.load(name, device="cpu")
    assert seg.classes == ("class 0", "class 1")
    want = pw.convert.load(state, origin="mmseg", name="unet")
    images = torch.randn(1, 3, 32, 48)
    with torch.no_grad():
        assert torch.equal(seg.system(images)[0], want(images)[0])
    assert seg.header["licence"] == "CC-BY-4.0"
    source = seg.header["source"]
    assert (source["origin"], source["commercial"]) == ("mmseg", "unclear")
    assert source["sha256"] == download.file_hash(download.cached(name + suffix))
    assert pw.load(name, device="cpu").classes == seg.classes
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("path", "system", "origin", "write"),
    [
        *(
            pytest.param(p.values[0], "bisenet", "mmseg", mmengine_file, marks=p.marks, id=p.id)
            for p in fixture_params("semantic", "mmseg_bisenetv1_*")
        ),
        *(
            pytest.param(
                p.values[0], "bisenet", "coincheung", training_file,
                marks=[*p.marks, pytest.mark.slow], id=p.id,
            )
            for p in fixture_params("semantic", "coincheung_bisenetv1_*")
        ),
        *(
            pytest.param(
                p.values[0], "deeplabv3", "torchvision", torchvision_file,
                marks=[*p.marks, pytest.mark.slow], id=p.id,
            )
            for p in fixture_params("semantic", "torchvision_deeplabv3_mobilenet*")
        ),
        *(
            pytest.param(
                p.values[0], "mask_rcnn", "detectron2", detectron2_file,
                marks=[*p.marks, pytest.mark.slow], id=p.id,
            )
            for p in fixture_params("instance", "detectron2_maskrcnn_r50_c4")
        ),
    ],
)  # fmt: skip
def test_the_originals_networks_come_through(
    publish, path: Path, system: str, origin: str, write: Callable[[State], bytes]
) -> None:
    """Filled by `fill.py`, downloaded, converted, loaded: bit for bit what the converter gives."""
    state = fill_state(load_fixture(path).meta)
    want = pw.convert.load(state, origin=origin, name=system)
    classes = want.cfg.num_classes
    suffix = ".pkl" if origin == "detectron2" else ".pth"
    name, _ = publish(write(state), system=system, origin=origin, classes=classes, suffix=suffix)
    seg = pw.load(name, device="cpu")
    ours = seg.system.state_dict()
    assert ours.keys() == want.state_dict().keys()
    assert all(torch.equal(ours[key], value) for key, value in want.state_dict().items())


def test_what_weights_cannot_tell_comes_from_the_catalogue(publish) -> None:
    name, _ = publish(
        mmengine_file(small()),
        config={"dropout": 0.25},
        input={"mean": [0.5] * 3, "std": [0.25] * 3, "scale": 1 / 255, "channel_order": "bgr",
               "resize": {"short_side": 77}},
    )  # fmt: skip
    seg = pw.load(name, device="cpu")
    assert seg.header["config"]["dropout"] == 0.25
    assert (seg.input.channel_order, seg.input.resize.short_side) == ("bgr", 77)


def test_a_tampered_file_is_never_opened(publish, monkeypatch: pytest.MonkeyPatch) -> None:
    def explode(*_: Any, **__: Any) -> None:
        raise AssertionError("opened before its hash was checked")

    name, server = publish(torchvision_file(small()))
    server.files["file.pth"].body = b"\x80\x02cos\nsystem\n."
    monkeypatch.setattr(published, "import_checkpoint", explode)
    with pytest.raises(ModelError, match="another file"):
        pw.load(name)
    assert not list(download.home().rglob("*.safetensors"))


def test_a_file_that_does_not_fit_says_so(publish) -> None:
    name, _ = publish(torchvision_file(small()), classes=5)
    with pytest.raises(ModelError, match="the file has 2 classes, the catalogue 5"):
        pw.load(name)


def test_a_conversion_by_another_version_is_made_anew_without_the_network(
    publish, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, server = publish(torchvision_file(small()))
    pw.load(name, device="cpu")
    path = download.home() / "models" / f"{name}.safetensors"
    before = path.stat().st_mtime_ns
    pw.load(name, device="cpu")
    assert path.stat().st_mtime_ns == before
    monkeypatch.setenv("PIXELWISE_OFFLINE", "1")
    for module in (checkpoint, published):
        monkeypatch.setattr(module, "__version__", "99.0")
    pw.load(name, device="cpu")
    assert path.stat().st_mtime_ns > before
    assert len(server.requests) == 1


def test_files_that_no_program_can_get_are_saved_by_hand(publish) -> None:
    content = torchvision_file(small())
    page = {"source": "https://drive.example.org/file/d/1x/view", "by_hand": "on Google Drive"}
    name, server = publish(content, **page)
    with pytest.raises(
        ModelError, match=r"on Google Drive \( https://drive\S+ \); save the file as"
    ):
        pw.load(name)
    path = download.cached(f"{name}.pth")
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    assert pw.load(name, device="cpu").classes == ("class 0", "class 1")
    assert server.requests == []


def test_a_published_model_serves_every_command(publish, capsys) -> None:
    """The command line reads it like any checkpoint of ours."""
    name, _ = publish(torchvision_file(small()))
    assert catalogue.find_checkpoint(name).name == f"{name}.safetensors"
    assert run(["models", "list", "unet_made*", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["models"]
    assert (row["name"], row["commercial"], row["origin"]) == (name, "unclear", "mmseg")
