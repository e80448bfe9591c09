"""What costs nothing must cost nothing: the import, and help."""

import resource
import subprocess
import sys
from pathlib import Path

import pytest

from pixelwise.cli import COMMANDS, run

COMMAND = str(Path(sys.executable).with_name("pixelwise"))
HEAVY = ("torch", "numpy", "PIL", "timm", "torchvision", "pydantic", "rich", "typer", "yaml")


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout


def test_import_loads_nothing_heavy() -> None:
    loaded = python("import sys, pixelwise; print(*sys.modules)").split()
    assert "pixelwise" in loaded
    assert not set(HEAVY) & {name.split(".")[0] for name in loaded}


def test_every_name_of_the_contents_page_is_there() -> None:
    python("import pixelwise as pw\nfor name in pw.__all__: getattr(pw, name)")


def test_help_loads_no_torch() -> None:
    code = "import sys; from pixelwise.cli import run; run(['--help']); print(*sys.modules)"
    loaded = {name.split(".")[0] for name in python(code).split()}
    assert not {"torch", "numpy", "PIL", "timm", "pydantic"} & loaded


def test_help_answers_at_once() -> None:
    """Processor time, since other tests run beside this one; alone it is the time of the clock."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([COMMAND, "--help"], capture_output=True, text=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert "predict" in done.stdout
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.5


def test_the_module_is_the_command() -> None:
    words = [["--help"], ["predict"]]
    module, script = (
        [subprocess.run([*start, *w], capture_output=True, text=True, check=False) for w in words]
        for start in ([sys.executable, "-m", "pixelwise"], [COMMAND])
    )
    for one, other in zip(module, script, strict=True):
        assert (one.returncode, one.stdout, one.stderr) == (
            other.returncode,
            other.stdout,
            other.stderr,
        )
    assert [done.returncode for done in module] == [0, 2]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([name, "--help"]) == 0
    assert "Usage: pixelwise " + name in capsys.readouterr().out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    import pixelwise

    assert run(["--version"]) == 0
    assert capsys.readouterr().out.strip() == pixelwise.__version__
