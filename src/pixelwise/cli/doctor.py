"""`pixelwise doctor`: what this installation has, for a bug report."""

from __future__ import annotations

import json as json_text
import os
import platform
from importlib.metadata import PackageNotFoundError, requires, version
from typing import Annotated, Any

import typer


def command(
    json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> int:
    """Print versions, devices and memory of this installation."""
    facts = inspect_installation()
    if json:
        print(json_text.dumps(facts, indent=2))
        return 0
    packages: dict[str, str | None] = facts.pop("packages")
    for key, value in facts.items():
        print(f"{key:10} {value}")
    for name, found in packages.items():
        print(f"  {name:24} {found or 'not installed'}")
    return 0


def inspect_installation() -> dict[str, Any]:
    """Versions of Python, of every declared dependency, and the devices torch can use."""
    import torch

    from pixelwise import __version__
    from pixelwise.download import home

    devices = [f"cpu ({os.cpu_count()} cores, {torch.get_num_threads()} torch threads)"]
    devices += [
        f"cuda:{i} ({torch.cuda.get_device_name(i)})" for i in range(torch.cuda.device_count())
    ]
    if torch.backends.mps.is_available():
        devices.append("mps")
    return {
        "pixelwise": __version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        "devices": ", ".join(devices),
        "home": str(home()),
        "packages": {name: _version(name) for name in _declared()},
    }


def _declared() -> list[str]:
    """Names of the dependencies that users may have, extras included."""
    try:
        declared = requires("pixelwise") or []
    except PackageNotFoundError:  # a source tree on the path, not installed
        return []
    lines = [r for r in declared if "dev" not in r.partition(";")[2]]
    names = [line.split(";")[0].split(">")[0].split("[")[0].strip() for line in lines]
    return [n for n in dict.fromkeys(names) if n != "pixelwise"]


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
