"""The command line: a table of commands over plain functions, and one place that reports errors.

Exit codes: 0 ok, 1 run time, 2 usage or configuration, 3 data, 4 model or checkpoint, 5 export or
missing extra, 130 interrupted.
"""

from __future__ import annotations

import errno
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module

from pixelwise.errors import PixelwiseError

# name on the command line → module that holds `command` (a function) or `app` (a group)
COMMANDS: dict[str, str] = {
    "predict": "pixelwise.cli.predict",
    "train": "pixelwise.cli.train",
    "val": "pixelwise.cli.val",
    "data": "pixelwise.cli.data",
    "models": "pixelwise.cli.models",
    "export": "pixelwise.cli.export",
    "verify": "pixelwise.cli.verify",
    "bench": "pixelwise.cli.bench",
    "demo": "pixelwise.cli.demo",
    "doctor": "pixelwise.cli.doctor",
}

_INTERRUPTED = 130

# What to do about the errors of the operating system that users meet most.
_NEXT_STEP = {
    errno.ENOSPC: "the disk is full: free some space or choose another --out",
    errno.EDQUOT: "the disk quota is used up: free some space or choose another --out",
    errno.EACCES: "permission denied: choose a folder you may read and write",
    errno.ENOTDIR: "a part of this path is a file, not a folder: choose another --out",
    errno.EEXIST: "a file of this name is in the way: remove it or choose another --out",
    errno.EROFS: "the file system is read-only: choose another --out",
}


def main(argv: Sequence[str] | None = None) -> None:
    """Run one command and exit with its code; an error is one message, not a traceback."""
    args = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in args
    sys.exit(run([a for a in args if a != "--debug"], debug=debug))


def run(args: Sequence[str], *, debug: bool = False) -> int:
    """Run one command; returns its exit code.

    Args:
        args:  the words after `pixelwise`.
        debug: print the traceback of an error besides its message.
    """
    import typer

    try:
        outcome = _build()(list(args), standalone_mode=False, prog_name="pixelwise")
        code = outcome if isinstance(outcome, int) else 0
    except typer.Exit as stop:
        code = stop.exit_code
    except (KeyboardInterrupt, typer.Abort):
        code = _INTERRUPTED
    except Exception as error:
        if debug:
            traceback.print_exc()
        return _report(error)
    if code == _INTERRUPTED:  # recent versions of typer turn Ctrl-C into this code themselves
        print("interrupted", file=sys.stderr)
    return code


def _report(error: Exception) -> int:
    """Print one message for an error; returns the exit code."""
    # Errors of options come from click, of which typer carries a copy in some versions: they are
    # known by what they can do.
    show = getattr(error, "show", None)
    if callable(show) and hasattr(error, "format_message"):
        show()
        return 2
    message, code = describe(error)
    prefix = "" if code == _INTERRUPTED else "error: "
    print(f"{prefix}{message}", file=sys.stderr)
    return code


def describe(error: Exception) -> tuple[str, int]:
    """One message with cause and next step, and the exit code, of any error."""
    if isinstance(error, PixelwiseError):
        return str(error), error.exit_code
    if isinstance(error, OSError):
        step = _NEXT_STEP.get(error.errno or 0, error.strerror or str(error))
        return f"{error.filename or 'file system'}: {step}", 1
    return f"{type(error).__name__}: {error} (run again with --debug for the traceback)", 1


def _build():  # noqa: ANN202  (typer's command type is click's, vendored differently by version)
    import typer

    app = typer.Typer(
        name="pixelwise",
        help="Every classic segmentation system: train, evaluate, predict.",
        no_args_is_help=True,
        add_completion=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
    )

    @app.callback(invoke_without_command=True)
    def _root(  # pyright: ignore[reportUnusedFunction]
        version: bool = typer.Option(False, "--version", help="Print the version and exit."),
    ) -> None:
        if version:
            from pixelwise import __version__

            print(__version__)
            raise typer.Exit

    for name, module_name in COMMANDS.items():
        module = import_module(module_name)
        if hasattr(module, "app"):
            app.add_typer(module.app, name=name)
        else:
            app.command(name)(module.command)
    return typer.main.get_command(app)
