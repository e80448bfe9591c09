"""The Hugging Face hub: models of ours that people share there.

A repository holds `model.safetensors`, a checkpoint of ours, and a model card. What is loaded lies
in `PIXELWISE_HOME/hub`; `HF_ENDPOINT` and `HF_TOKEN` mean what they mean to huggingface_hub.
"""

from __future__ import annotations

import os
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from pixelwise import atomic, catalogue, checkpoint
from pixelwise.card import card_of
from pixelwise.download import home, is_offline
from pixelwise.errors import ModelError, UsageError

if TYPE_CHECKING:
    from pixelwise.predict import Segmenter

PREFIX = "hf-hub:"
FILE = "model.safetensors"


def find(address: str) -> Path:
    """The checkpoint of a model on the hub, downloaded if it is not in the cache.

    Args:
        address: "hf-hub:org/name", or "hf-hub:org/name@revision" for a branch, tag or commit.

    Raises:
        ModelError: no such repository or revision, no checkpoint of ours in it, or no connection.
    """
    from huggingface_hub import hf_hub_download

    repo, _, revision = address.removeprefix(PREFIX).partition("@")
    try:
        found = hf_hub_download(
            repo,
            FILE,
            revision=revision or None,
            cache_dir=home() / "hub",
            endpoint=_endpoint(),
            local_files_only=is_offline(),
            library_name="pixelwise",
        )
    except Exception as error:
        raise _explained(error, address) from error
    return Path(found)


def push_to_hub(
    model: str | Path | Segmenter,
    repo: str,
    *,
    token: str | None = None,
    private: bool | None = None,
    message: str = "A pixelwise model",
) -> str:
    """Publish a model with its card; the repository is made if it is not there.

    >>> push_to_hub("runs/city", "me/city-deeplab")   # doctest: +SKIP

    Args:
        model:   what `pw.load` takes, or a loaded model.
        repo:    "org/name".
        token:   of the hub; None takes `HF_TOKEN` or the one of `hf auth login`.
        private: whether a new repository is seen by its owner only; None as the owner's default.
        message: of the commit.

    Returns:
        The repository's address.

    Raises:
        ModelError: no such model, or the hub refuses.
        UsageError: a repository's name that is none.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError

    api = HfApi(endpoint=_endpoint(), token=token, library_name="pixelwise")
    with TemporaryDirectory() as folder:
        _write_repository(model, repo, Path(folder))
        try:
            address = str(api.create_repo(repo, private=private, exist_ok=True))
            api.upload_folder(repo_id=repo, folder_path=folder, commit_message=message)
        except HFValidationError as error:
            raise UsageError(
                f"{repo!r} is no name of a repository ({error}); use org/name"
            ) from None
        except Exception as error:
            raise _explained(error, f"{PREFIX}{repo}") from error
    return address


def _write_repository(model: str | Path | Segmenter, repo: str, folder: Path) -> None:
    """The files of the repository: checkpoint and card."""
    file = folder / FILE
    if isinstance(model, str | Path):
        source = catalogue.find_checkpoint(model)
        checkpoint.read_header(source)  # nothing but a checkpoint of ours is published
        atomic.write(file, source.read_bytes())
    else:
        _save(model, file)
    text = card_of(checkpoint.read_header(file), load=f"{PREFIX}{repo}")
    atomic.write(folder / "README.md", text)


def _save(model: Segmenter, file: Path) -> None:
    """A loaded model as a file, with everything that its own file said."""
    header = model.header
    checkpoint.save(
        file,
        model.system,
        name=model.name,
        classes=model.classes,
        input=model.input,
        metrics=header.get("metrics"),
        licence=header.get("licence", ""),
        recipe=header.get("recipe"),
        colors=model.colors,
        source=header.get("source"),
    )


def _endpoint() -> str | None:
    """Read at every call; huggingface_hub reads it once, when it is imported."""
    return os.environ.get("HF_ENDPOINT") or None


def _explained(error: Exception, address: str) -> ModelError:
    """An error of the hub's client as cause and next step."""
    from huggingface_hub import errors

    steps: tuple[tuple[Any, str], ...] = (
        (
            errors.GatedRepoError,
            "access is by permission: ask for it on its page, then set HF_TOKEN",
        ),
        (errors.RepositoryNotFoundError, "no such repository, or a private one: set HF_TOKEN"),
        (errors.RevisionNotFoundError, "no such revision of it: check what follows the @"),
        (
            errors.LocalEntryNotFoundError,
            "not in the cache, and there is no connection or PIXELWISE_OFFLINE is set",
        ),
        (
            errors.EntryNotFoundError,
            f"holds no {FILE}: it is no model of pixelwise; download its weights and "
            "`pixelwise models import` them",
        ),
        (errors.HFValidationError, "no address of a model: use hf-hub:org/name"),
    )
    for kind, step in steps:
        if isinstance(error, kind):
            return ModelError(f"{address}: {step}")
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return ModelError(f"{address}: the hub cannot be used ({reason}); check network and HF_TOKEN")
