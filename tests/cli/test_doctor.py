"""`pixelwise doctor` from an installation and from a source tree."""

import json
from importlib.metadata import PackageNotFoundError

from pixelwise.cli import doctor, run


def test_a_source_tree_is_no_error(capsys, monkeypatch) -> None:
    def requires(name: str) -> list[str]:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(doctor, "requires", requires)
    assert run(["doctor", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["packages"] == {}
    assert facts["devices"].startswith("cpu")
