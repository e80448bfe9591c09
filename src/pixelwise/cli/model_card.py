"""`pixelwise models card`: what a model is, what it may be used for and how good it is."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def command(
    name: Annotated[str, typer.Argument(help="A model, a checkpoint or a run folder.")],
    *,
    out: Annotated[Path | None, typer.Option(help="Write it there, not to stdout.")] = None,
) -> int:
    """Print a model card in Markdown: licences, training data, numbers, input, how to use it."""
    from pixelwise import atomic
    from pixelwise.card import card

    text = card(name)
    if out is None:
        print(text)
    else:
        atomic.write(out, text)
    return 0
