"""`pixelwise models push`: publish a model on the Hugging Face hub."""

from __future__ import annotations

from typing import Annotated

import typer


def command(
    model: Annotated[str, typer.Argument(help="A model, a checkpoint or a run folder.")],
    repo: Annotated[str, typer.Argument(help="Repository on the hub: org/name.")],
    *,
    private: Annotated[
        bool | None, typer.Option("--private/--public", help="Who sees a new repository.")
    ] = None,
) -> int:
    """Publish a model with its card on the Hugging Face hub; HF_TOKEN says who you are."""
    from pixelwise.hub import push_to_hub

    print(push_to_hub(model, repo, private=private))
    return 0
