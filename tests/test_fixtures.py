"""Where fixtures are absent tests skip; a wrong pattern must not pass for that."""

import ast
import os
from pathlib import Path

import pytest

from tests.fixtures import fixture_params, fixture_paths, parity_dir

HERE = Path(__file__).parent


def patterns() -> set[tuple[str, str]]:
    """(kind, pattern) of every call of `fixture_params` with two literals."""
    found = set()
    for path in HERE.rglob("test_*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "fixture_params":
                words = [a.value for a in node.args if isinstance(a, ast.Constant)]
                if len(words) == 2:
                    found.add(tuple(words))
    return found


@pytest.mark.skipif(
    "PIXELWISE_PARITY" in os.environ or not parity_dir().is_dir(),
    reason=f"the whole set of fixtures is not in {parity_dir()}",
)
def test_every_pattern_finds_a_fixture() -> None:
    asked = patterns()
    assert ("instance", "ops_masks*") in asked
    assert not [words for words in sorted(asked) if not fixture_paths(*words)]


def test_without_fixtures_one_skip_says_what_is_missing() -> None:
    nowhere = "no_such_thing*"
    (only,) = fixture_params("instance", nowhere)
    (mark,) = only.marks
    assert mark.name == "skip"
    assert f"instance/{nowhere}" in mark.kwargs["reason"]
