"""What upstream implementations of semantic systems compute, reproduced through the converters.

`RUNNERS` maps a fixture's name prefix to the function that checks every output it stores; settings
that shapes cannot tell come from the fixture's json. A new depth, class count, size or seed runs
without new code. A fixture that no table knows fails.
"""

from collections.abc import Callable

import pytest

from tests.convert import (
    parity_deeplab,
    parity_fcn,
    parity_gcn_bisenet_efficientfcn,
    parity_pspnet_unet,
)
from tests.fixtures import Fixture, fixture_params, load_fixture

RUNNERS: dict[str, Callable[[Fixture], None]] = {
    **parity_deeplab.RUNNERS,
    **parity_fcn.RUNNERS,
    **parity_gcn_bisenet_efficientfcn.RUNNERS,
    **parity_pspnet_unet.RUNNERS,
}

# Prefixes of fixtures that belong to systems which are not built yet, or to another test.
COMING = {
    "caffe_layers_deeplab_": "DeepLab V1",
    "deeplab_pytorch_deeplabv2_": "DeepLab V2",
}
ELSEWHERE = {
    "losses_semantic": "tests/losses/test_pixel.py",
    "metrics_semantic": "tests/metrics",
    "tables": "tables of palettes and schedules",
}


def matching(table: dict, name: str) -> list:
    return [value for prefix, value in table.items() if name.startswith(prefix)]


@pytest.mark.parametrize("path", fixture_params("semantic"))
def test_parity(path) -> None:
    if path.stem in ELSEWHERE or load_fixture(path).kind != "semantic":
        pytest.skip(f"tested in {ELSEWHERE.get(path.stem, 'the tests of instance systems')}")
    runners = matching(RUNNERS, path.stem)
    if not runners:
        coming = matching(COMING, path.stem)
        assert coming, f"no runner knows the fixture {path.stem}"
        pytest.skip(f"{coming[0]} is not built yet")
    runners[0](load_fixture(path))


def test_no_prefix_is_in_both_tables() -> None:
    for prefix in RUNNERS:
        assert not matching(COMING, prefix)
