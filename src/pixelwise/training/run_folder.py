"""The folder of a run: everything needed to repeat it, resume it, and look at it."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import platform
import re
import shlex
import sys
import time
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from pixelwise import __version__, atomic
from pixelwise.data.dataset import Dataset
from pixelwise.errors import UsageError

Row = dict[str, float | int]

_PACKAGES = ("torch", "torchvision", "timm", "accelerate", "safetensors", "numpy", "pillow")
_FIRST_COLUMNS = ("epoch", "step", "lr", "train/loss", "val/loss")


class RunFolder:
    """Paths and writers of one run.

    Holds config.yaml, command.txt, environment.json, data.json, log.txt, metrics.csv and .jsonl,
    evaluation.json, weights/, state/, pictures/ and report.html.

    Args:
        path:  the folder.
        quiet: write log lines to log.txt only, not to stderr.
        write: False in all processes but the first: nothing is written then.
    """

    def __init__(self, path: Path, *, quiet: bool = False, write: bool = True) -> None:
        self.path = path
        self.quiet = quiet
        self.writes = write
        self._columns: list[str] = []

    @property
    def config(self) -> Path:
        """The resolved recipe."""
        return self.path / "config.yaml"

    @property
    def best(self) -> Path:
        """The weights with the best metric."""
        return self.path / "weights" / "best.safetensors"

    @property
    def last(self) -> Path:
        """The newest evaluated weights."""
        return self.path / "weights" / "last.safetensors"

    @property
    def state(self) -> Path:
        """What a resumed run goes on from."""
        return self.path / "state" / "last.pt"

    @property
    def nan_batch(self) -> Path:
        """The batch whose loss was not finite."""
        return self.path / "state" / "nan_batch.pt"

    @property
    def metrics(self) -> Path:
        """One JSON object per line."""
        return self.path / "metrics.jsonl"

    def create(self) -> None:
        """Make the folders.

        Raises:
            UsageError: the folder holds a run already.
            OSError: no permission or a full disk.
        """
        self.check_new()
        self.make_folders()

    def check_new(self) -> None:
        """Refuse a folder that holds a run already.

        Raises:
            UsageError: it does.
        """
        if self.metrics.exists() or self.state.exists():
            raise UsageError(
                f"{self.path}: holds a run already; go on with --resume {self.path}, "
                "or choose another folder with out=FOLDER"
            )

    def make_folders(self) -> None:
        """Make the folders that are missing."""
        for name in ("weights", "state", "pictures"):
            (self.path / name).mkdir(parents=True, exist_ok=True)

    def write(self, name: str, content: str) -> None:
        """Write one text file of the folder, all or nothing."""
        if self.writes:
            atomic.write(self.path / name, content)

    def write_json(self, name: str, content: Any) -> None:
        """Write one JSON file of the folder, all or nothing."""
        self.write(name, json.dumps(content, indent=2, default=str) + "\n")

    def say(self, line: str) -> None:
        """One line to log.txt, and to stderr unless quiet."""
        if not self.writes:
            return
        atomic.append(self.path / "log.txt", f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}\n")
        if not self.quiet:
            print(line, file=sys.stderr, flush=True)  # noqa: T201

    def log_row(self, row: Row) -> None:
        """Append a row to metrics.jsonl and metrics.csv."""
        if not self.writes:
            return
        atomic.append(self.metrics, json.dumps(row) + "\n")
        if set(row) <= set(self._columns):
            line = io.StringIO()
            csv.DictWriter(line, self._columns, lineterminator="\n").writerow(row)
            atomic.append(self.path / "metrics.csv", line.getvalue())
        else:
            self._rewrite_csv(self.rows())

    def rows(self) -> list[Row]:
        """All rows of metrics.jsonl; a line cut off by a kill is left out."""
        rows: list[Row] = []
        if self.metrics.exists():
            for line in self.metrics.read_text(encoding="utf-8").splitlines():
                try:
                    rows.append(json.loads(line))
                except json.JSONDecodeError:
                    break
        return rows

    def rewind(self, step: int, evaluated_step: int) -> None:
        """Drop the rows that a resumed run will write again.

        Args:
            step:           steps done in the state that is resumed.
            evaluated_step: step of its newest finished evaluation.
        """
        if not self.writes:
            return
        kept = [
            row
            for row in self.rows()
            if row["step"] <= (evaluated_step if "val/loss" in row else step)
        ]
        atomic.write(self.metrics, "".join(json.dumps(row) + "\n" for row in kept))
        self._rewrite_csv(kept)

    def _rewrite_csv(self, rows: Sequence[Row]) -> None:
        """A new column appeared: the header changes, so the whole file does."""
        found = dict.fromkeys(key for row in rows for key in row)
        ordered = [c for c in _FIRST_COLUMNS if c in found]
        self._columns = [*ordered, *(c for c in found if c not in ordered)]
        text = io.StringIO()
        writer = csv.DictWriter(text, self._columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        atomic.write(self.path / "metrics.csv", text.getvalue())


def next_free(name: str) -> Path:
    """The first of runs/NAME, runs/NAME-2, ... that does not exist."""
    stem = re.sub(r"[^\w.-]+", "_", name)
    path, number = Path("runs") / stem, 1
    while path.exists():
        number += 1
        path = Path("runs") / f"{stem}-{number}"
    return path


def command_line() -> str:
    """The words this process was started with, ready for a shell."""
    return shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]) + "\n"


def environment() -> dict[str, Any]:
    """Versions and devices, for repeating a run elsewhere."""
    return {
        "pixelwise": __version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "processes": int(os.environ.get("WORLD_SIZE", "1")),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "packages": {name: _version(name) for name in _PACKAGES},
    }


def fingerprint(view: Dataset, annotation: Path) -> dict[str, Any]:
    """What a split consisted of: the number of its pictures, and hashes that a change changes.

    Args:
        view:       the split; names and sizes of its pictures and label files are hashed.
        annotation: file or folder the annotations came from; a file is hashed whole.
    """
    digest = hashlib.sha256()
    for i in range(len(view)):
        for path in (view.path(i), *view.label_files(i)):
            size = path.stat().st_size if path.exists() else -1
            digest.update(f"{path.name} {size}\n".encode())
    found: dict[str, Any] = {"images": len(view), "sha256_names_sizes": digest.hexdigest()}
    if annotation.is_file():
        found["annotation_sha256"] = hashlib.sha256(annotation.read_bytes()).hexdigest()
    return found


def memory_mb(device: torch.device) -> float:
    """Peak memory of this process in MB (2^20 bytes): of the GPU where it computes on one."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    try:
        import resource
    except ImportError:  # Windows counts differently; no number is better than a wrong one
        return 0.0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
