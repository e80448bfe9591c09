"""Systems as files for other runtimes: torch.export and ONNX, compared with the model before use.

What is exported is `forward`: normalised images in, the fixed-rank tensors of `Raw` out.
Preprocessing values and class names travel in the file; `decode` is small and the same for every
runtime.
"""

from __future__ import annotations

import json
import logging
import re
import tempfile
import warnings
from collections.abc import Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import asdict, dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from pixelwise.errors import ExportError, MissingExtraError, UsageError
from pixelwise.predict import Segmenter, load
from pixelwise.spec import InputSpec
from pixelwise.systems import SYSTEMS
from pixelwise.types import Size

Dynamic = Literal["sizes", "sizes32", "batch", "none"]

TOLERANCE = 1e-4  # of the largest value of an output
_METADATA = "pixelwise"  # key in an ONNX file, name of a file in a .pt2
_LARGEST_SIDE = 8192
_OPSET = 18
_CHATTY = ("torch", "torch.onnx", "onnxscript", "onnx_ir")
_EXTRA = ("onnx", "onnxscript", "onnxruntime")


@dataclass(frozen=True, kw_only=True)
class Passport:
    """What a file must say besides its weights, so that nobody has to guess it later.

    Args:
        name:    row of `SYSTEMS`.
        task:    "semantic" or "instance".
        classes: in label order.
        input:   how pictures become the network's input.
    """

    name: str
    task: str
    classes: Sequence[str]
    input: InputSpec

    def to_json(self, system: nn.Module, dynamic: Dynamic) -> str:
        """One JSON document, the system's config and the open dimensions included."""
        config = getattr(system, "cfg", None)
        return json.dumps(
            {
                "name": self.name,
                "task": self.task,
                "classes": list(self.classes),
                "input": self.input.to_dict(),
                "config": {} if config is None else asdict(config),
                "dynamic": dynamic,
            }
        )


def open_dimensions(system: nn.Module) -> Dynamic:
    """Which input dimensions an export of this system can leave open in reasonable time.

    "sizes": batch, height and width; "sizes32": the same, multiples of 32; "batch"; "none".
    Two-stage systems and patchifying backbones are exported for one size: torch's reasoning about
    open sizes takes minutes to hours on them.
    """
    if "semantic" not in {row.task for row in SYSTEMS.values() if row.system is type(system)}:
        return "none"
    backbone = getattr(system, "backbone", None)
    divisor = getattr(backbone, "divisor", None)  # networks of timm have one
    if divisor is None:
        return "sizes"
    return "sizes32" if divisor == 1 else "batch"


def _open_dimensions_onnx(system: nn.Module) -> Dynamic:
    """The same for ONNX, where semantic systems are traced and no reasoning about sizes is done."""
    chosen = open_dimensions(system)
    return "sizes32" if chosen == "batch" else chosen


def export(
    model: str | Path | Segmenter,
    path: str | Path,
    *,
    size: Size = (512, 512),
    dynamic: Dynamic | None = None,
) -> Path:
    """Write a model as a file for another runtime; the suffix says which: .onnx or .pt2.

    Args:
        model:   as for `load`, or a loaded one.
        path:    of the file; it is written only if its output was seen to equal the model's.
        size:    (height, width) of the network's input that is traced, multiples of 32; where sizes
                 stay open, others work too.
        dynamic: which dimensions stay open; None for what the system allows.

    Raises:
        UsageError: another suffix, another word, or sides that are no multiples of 32.
        MissingExtraError: ONNX is not installed.
        ExportError: the export failed or its output differs.
    """
    writers = {".onnx": export_onnx, ".pt2": export_torch}
    path = Path(path)
    if path.suffix not in writers:
        raise UsageError(f"{path}: name a file that ends in {' or '.join(writers)}")
    if any(side < 32 or side % 32 for side in size):
        raise UsageError(f"size {size[0]}x{size[1]}: each side must be a multiple of 32")
    if dynamic not in (None, *get_args(Dynamic)):
        raise UsageError(f"dynamic {dynamic!r}: choose {', '.join(get_args(Dynamic))}")
    segmenter = model if isinstance(model, Segmenter) else load(model, device="cpu")
    passport = Passport(
        name=segmenter.name,
        task=segmenter.task,
        classes=segmenter.classes,
        input=segmenter.input,
    )
    generator = torch.Generator().manual_seed(0)
    example = torch.randn(1, segmenter.input.channels, *size, generator=generator)
    example = example.to(segmenter.device)
    return writers[path.suffix](segmenter.system, path, example, passport=passport, dynamic=dynamic)


def export_program(
    system: nn.Module, example: Tensor, *, dynamic: Dynamic | None = None
) -> ExportedProgram:
    """A system as a torch.export program, checked against the system.

    Args:
        system:  in evaluation mode afterwards.
        example: [B, C, H, W] normalised images; H and W multiples of 32 where sizes stay open.
        dynamic: which dimensions stay open; None for what `open_dimensions` says.

    Returns:
        The program; `program.module()(images)` gives what `system(images)` gives.

    Raises:
        ExportError: torch cannot export it, or the program's output differs.
    """
    chosen = dynamic or open_dimensions(system)
    example = _traceable(example, chosen)
    program = _program(system, example, chosen)
    _verify_program(program, system, _probes(example, chosen))
    return program


def _traceable(example: Tensor, dynamic: Dynamic) -> Tensor:
    """Two images instead of one where the batch stays open: torch would fix a dimension of 1."""
    if dynamic == "none" or len(example) > 1:
        return example
    return example.expand(2, -1, -1, -1).contiguous()


def _program(system: nn.Module, example: Tensor, dynamic: Dynamic) -> ExportedProgram:
    """The program, not yet checked."""
    system.eval()
    try:
        with torch.no_grad(), _quiet():
            return torch.export.export(
                system, (example,), dynamic_shapes=(_shapes(dynamic),), strict=False
            )
    except Exception as error:  # torch raises many kinds
        raise ExportError(
            f"torch.export failed ({_first_line(error)}); {_next_step(dynamic)}"
        ) from error


def _next_step(dynamic: Dynamic, other: str = ".onnx") -> str:
    if dynamic == "none":
        return f"write {other} instead, or try a newer torch"
    return f"leave less open (dynamic 'sizes32', 'batch' or 'none'), or write {other}"


def _verify_program(program: ExportedProgram, system: nn.Module, probes: list[Tensor]) -> None:
    run = cast("Any", program.module())
    for images in probes:
        with torch.no_grad():
            _compare(system(images), run(images), f"torch.export at {tuple(images.shape)}")


def export_torch(
    system: nn.Module,
    path: str | Path,
    example: Tensor,
    *,
    passport: Passport,
    dynamic: Dynamic | None = None,
) -> Path:
    """Write a torch.export program (.pt2), its passport inside as "pixelwise.json".

    What is compared with the system is the file, read back. It returns a plain tuple in the order
    of `Raw`, so that reading it needs torch alone.

    Args:
        system:   as in `export_program`.
        path:     of the file.
        example:  as in `export_program`.
        passport: what the file says about itself.
        dynamic:  as in `export_program`.

    Raises:
        ExportError: torch cannot export or write it, or the output of the file differs.
    """
    path = Path(path)
    system, example = _on_cpu(system, example)
    chosen = dynamic or open_dimensions(system)
    plain = _Plain(system)
    example = _traceable(example, chosen)
    program = _program(plain, example, chosen)
    about = passport.to_json(system, chosen)
    with _beside(path) as temporary:
        try:
            with _quiet():
                torch.export.save(program, temporary, extra_files={f"{_METADATA}.json": about})
                written = torch.export.load(temporary)
        except Exception as error:  # as above
            raise ExportError(
                f"torch.export cannot write it ({_first_line(error)}); {_next_step(chosen)}"
            ) from error
        _verify_program(written, plain, _probes(example, chosen))
        temporary.replace(path)
    return path


def export_onnx(
    system: nn.Module,
    path: str | Path,
    example: Tensor,
    *,
    passport: Passport,
    dynamic: Dynamic | None = None,
) -> Path:
    """Write an ONNX file that onnxruntime was seen to run with the system's output.

    The file's metadata hold the passport under the key "pixelwise". Outputs are named like the
    fields of the system's `Raw`, the input "images".

    Args:
        system:   as in `export_program`.
        path:     of the file; it is written only if the check passed.
        example:  as in `export_program`.
        passport: what the file says about itself.
        dynamic:  as in `export_program`.

    Raises:
        MissingExtraError: onnx, onnxscript or onnxruntime is not installed.
        ExportError: the export failed or its output differs.
    """
    if any(find_spec(name) is None for name in _EXTRA):
        raise MissingExtraError("ONNX export", "onnx")
    path = Path(path)
    system, example = _on_cpu(system, example)
    chosen = dynamic or _open_dimensions_onnx(system)
    example = _traceable(example, chosen)
    system.eval()
    with torch.no_grad():
        outputs = system(example)
    names = list(getattr(outputs, "_fields", [f"output{i}" for i in range(len(outputs))]))
    with _beside(path) as temporary:
        _write_onnx(system, example, temporary, names=names, dynamic=chosen)
        _label(temporary, passport.to_json(system, chosen))
        _verify_onnx(temporary, system, _probes(example, chosen))
        temporary.replace(path)
    return path


def read_passport(path: str | Path) -> dict[str, Any]:
    """What an exported file (.onnx or .pt2) says about itself; empty where it says nothing."""
    path = Path(path)
    if path.suffix == ".onnx":
        model = _onnx().load(str(path), load_external_data=False)
        found = {p.key: p.value for p in model.metadata_props}.get(_METADATA)
    else:
        extra: dict[str, Any] = {f"{_METADATA}.json": ""}
        torch.export.load(path, extra_files=extra)
        found = extra[f"{_METADATA}.json"]
    return json.loads(found) if found else {}


class _Plain(nn.Module):
    """A system whose outputs are a plain tuple: a file cannot hold our NamedTuple classes."""

    def __init__(self, system: nn.Module) -> None:
        super().__init__()
        self.system = system

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.system(images))


def _on_cpu(system: nn.Module, example: Tensor) -> tuple[nn.Module, Tensor]:
    """The system itself or a copy: a file made on a GPU would name it and run nowhere else."""
    places = {tensor.device.type for tensor in (*system.parameters(), *system.buffers())}
    if places <= {"cpu"}:
        return system, example.cpu()
    return deepcopy(system).cpu(), example.cpu()


def _shapes(dynamic: Dynamic) -> dict[int, Any] | None:
    if dynamic == "none":
        return None
    shapes: dict[int, Any] = {0: Dim("batch")}
    if dynamic == "sizes":
        shapes |= {
            2: Dim("height", min=33, max=_LARGEST_SIDE),
            3: Dim("width", min=33, max=_LARGEST_SIDE),
        }
    if dynamic == "sizes32":
        cells = _LARGEST_SIDE // 32
        shapes |= {2: 32 * Dim("rows", min=2, max=cells), 3: 32 * Dim("columns", min=2, max=cells)}
    return shapes


def _probes(example: Tensor, dynamic: Dynamic) -> list[Tensor]:
    """The example, and where sizes are open an input of another batch, height and width."""
    if dynamic in ("none", "batch"):
        return [example] if dynamic == "none" else [example, example[:1].contiguous()]
    height, width = example.shape[-2:]
    other = torch.nn.functional.pad(example[:1], (0, 64, 0, 32))
    if dynamic == "sizes" and min(height, width) > 40:
        other = other[..., :-5, :-3]
    return [example, other.contiguous()]


def _write_onnx(
    system: nn.Module, example: Tensor, path: Path, *, names: list[str], dynamic: Dynamic
) -> None:
    """Fixed sizes go through torch.export; open ones are traced, which takes a second, not minutes.

    Tracing fixes Python branches on sizes as the example takes them; what that costs is found by
    running the file at a second size.
    """
    options: dict[str, Any] = {"input_names": ["images"], "output_names": names, "verbose": False}
    if dynamic == "none":
        options |= {"dynamo": True, "external_data": False}
    else:
        axes = {0: "batch"} if dynamic == "batch" else {0: "batch", 2: "height", 3: "width"}
        out = {i: f"{name}_out" for i, name in axes.items()} | {0: "batch"}
        options |= {"dynamo": False, "opset_version": _OPSET}
        options |= {"dynamic_axes": {"images": axes, **dict.fromkeys(names, out)}}
    try:
        with torch.no_grad(), _quiet():
            cast("Any", torch.onnx).export(system, (example,), str(path), **options)
    except Exception as error:  # as above
        raise ExportError(
            f"the ONNX exporter of torch {torch.__version__} failed ({_first_line(error)}); "
            f"{_next_step(dynamic, '.pt2')}"
        ) from error


def _onnx() -> Any:
    if find_spec("onnx") is None:
        raise MissingExtraError("reading ONNX files", "onnx")
    return import_module("onnx")


def _label(path: Path, about: str) -> None:
    model = _onnx().load(str(path))
    entry = model.metadata_props.add()
    entry.key, entry.value = _METADATA, about
    _onnx().save(model, str(path))


def _verify_onnx(path: Path, system: nn.Module, probes: list[Tensor]) -> None:
    runtime: Any = import_module("onnxruntime")
    try:
        session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        for images in probes:
            found = session.run(None, {"images": images.numpy()})
            with torch.no_grad():
                expected = system(images)
            found = [torch.as_tensor(value) for value in found]
            _compare(expected, found, f"onnxruntime at {tuple(images.shape)}")
    except ExportError:
        raise
    except Exception as error:
        raise ExportError(f"onnxruntime cannot run the file: {_first_line(error)}") from error


def _compare(expected: Sequence[Tensor], found: Sequence[Tensor], what: str) -> None:
    """Raise unless every output agrees within `TOLERANCE` of its largest value."""
    for i, (wanted, got) in enumerate(zip(expected, found, strict=True)):
        name = getattr(expected, "_fields", [f"output {i}"] * (i + 1))[i]
        if wanted.shape != got.shape:
            raise ExportError(
                f"{what}: {name} has shape {tuple(got.shape)} instead of {tuple(wanted.shape)}"
            )
        if not wanted.numel():
            continue
        difference = (wanted.double() - got.double()).abs().max().item()
        scale = max(wanted.double().abs().max().item(), 1e-6)
        if not difference <= TOLERANCE * scale:
            raise ExportError(
                f"{what}: {name} differs from the model by {difference:.3g}, more than "
                f"{TOLERANCE:g} of its largest value {scale:.3g}; the file is not kept"
            )


@contextmanager
def _beside(path: Path) -> Any:
    """A file in the same folder that becomes the target only when everything went well."""
    if not path.parent.is_dir():
        raise ExportError(f"{path.parent}: no such folder; create it first")
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".export-") as folder:
        yield Path(folder) / path.name


@contextmanager
def _quiet() -> Any:
    """Without the exporters' chatter about operators and versions."""
    loggers = [logging.getLogger(name) for name in _CHATTY]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _first_line(error: Exception) -> str:
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error))  # without the colours of a terminal
    return (text.strip().splitlines() or [type(error).__name__])[0][:300]
