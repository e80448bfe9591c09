"""Runner of the fixture of the discriminative loss, for `test_parity_instance`."""

from __future__ import annotations

from collections.abc import Callable

import torch

from pixelwise.losses.embedding import discriminative_loss
from tests.convert.parity_fcis import check_all
from tests.fixtures import Fixture


def run_loss(fixture: Fixture) -> None:
    """Terms per image, averaged as the fixture's code averages them."""
    about = fixture.meta["configuration"]
    assert about["norm"] == "Euclidean"
    embeddings, ids = fixture.tensor("in.embedding"), fixture.tensor("in.instance_ids").long()
    margins = {"delta_v": about["delta_v"], "delta_d": about["delta_d"]}
    terms = [
        discriminative_loss(x.flatten(1), i.flatten() - 1, **margins)
        for x, i in zip(embeddings, ids, strict=True)
    ]
    variance, distance, regularisation = (
        torch.stack(values).mean().view(1) for values in zip(*terms, strict=True)
    )
    pulled = about["alpha"] * variance + about["gamma"] * regularisation
    stages = {
        "in.embedding": embeddings,
        "in.instance_ids": ids,
        "means": means(embeddings, ids, fixture.shape("means")[2]),
        "loss.variance": variance,
        "loss.distance_half": distance / 2,
        "loss.regularisation": regularisation,
        "loss.total_with_half_distance": pulled + about["beta"] * distance / 2,
        "loss.total_paper": pulled + about["beta"] * distance,
    }
    check_all(fixture, stages)


def means(embeddings: torch.Tensor, ids: torch.Tensor, columns: int) -> torch.Tensor:
    """[B, D, C] of the clusters in the order of their ids, zeros where an image has fewer."""
    found = embeddings.new_zeros(*embeddings.shape[:2], columns)
    for image, (x, i) in enumerate(zip(embeddings, ids, strict=True)):
        for column, number in enumerate(n for n in i.unique().tolist() if n > 0):
            found[image, :, column] = x[:, i == number].mean(dim=1)
    return found


RUNNERS: dict[str, Callable[[Fixture], None]] = {"loss_discriminative": run_loss}
