"""Runners of the fixtures of U-Net and GCN, for `test_parity_semantic`."""

from __future__ import annotations

from collections.abc import Callable

import torch

from tests.convert.parity import check_all, convert
from tests.fixtures import Fixture


@torch.no_grad()
def run_gcn(fixture: Fixture) -> None:
    system = convert(fixture, "zijundeng", "gcn").system
    for tag, images in fixture.inputs().items():
        check_all(fixture, {"logits": system(images).logits}, tag)


RUNNERS: dict[str, Callable[[Fixture], None]] = {"zijundeng_gcn_": run_gcn}
