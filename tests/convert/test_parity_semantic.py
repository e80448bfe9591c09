"""What upstream implementations of semantic systems compute, reproduced through the converters.

`RUNNERS` maps a fixture's name prefix to the function that checks every output it stores; settings
that shapes cannot tell come from the fixture's json. A new depth, class count, size or seed runs
without new code. A fixture that no table knows fails.
"""

from collections.abc import Callable

import pytest

from tests.convert import (
    parity_deeplab,
    parity_deeplabv1v2,
    parity_fcn,
    parity_gcn_bisenet_efficientfcn,
    parity_pspnet_unet,
)
from tests.fixtures import Fixture, fixture_params, load_fixture

RUNNERS: dict[str, Callable[[Fixture], None]] = {
    **parity_deeplab.RUNNERS,
    **parity_deeplabv1v2.RUNNERS,
    **parity_fcn.RUNNERS,
    **parity_gcn_bisenet_efficientfcn.RUNNERS,
    **parity_pspnet_unet.RUNNERS,
}

# Prefix of the fixtures that another test reads.
ELSEWHERE = {
    "losses_semantic": "tests/losses/test_pixel.py",
    "metrics_semantic": "tests/metrics",
    "tables": "tables of palettes and schedules",
}


@pytest.mark.parametrize("path", fixture_params("semantic"))
def test_parity(path) -> None:
    elsewhere = next((test for name, test in ELSEWHERE.items() if path.stem.startswith(name)), None)
    if elsewhere or load_fixture(path).kind != "semantic":
        pytest.skip(f"tested in {elsewhere or 'the tests of instance systems'}")
    runners = [run for prefix, run in RUNNERS.items() if path.stem.startswith(prefix)]
    assert runners, f"no runner knows the fixture {path.stem}"
    runners[0](load_fixture(path))
