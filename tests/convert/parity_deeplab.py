"""Runners of the fixtures of DeepLab V1, DeepLab V2 and the dense CRF."""

import re

import torch

from pixelwise.ops.crf import DenseCRF, dense_crf, dense_crf_exact
from tests.fixtures import Fixture

# Between the exact mean field and the lattice of the authors' library, over their fixtures.
LARGEST_AFTER_ONE = 0.16
LEAST_AGREEMENT = 0.95


def run_dense_crf(fixture: Fixture) -> None:
    """Ours against the brute force and against the authors' library, after every stored count."""
    given = fixture.meta["parameters"]
    probs, image = (
        torch.from_numpy(fixture.arrays["prob"]),
        torch.from_numpy(fixture.arrays["image"]),
    )
    counts = [int(m[1]) for key in fixture.arrays if (m := re.fullmatch(r"exact_(\d+)", key))]
    assert counts
    for count in counts:
        crf = DenseCRF(
            w1=given["bilateral_weight"],
            sigma_alpha=given["bilateral_sxy"],
            sigma_beta=given["bilateral_srgb"],
            w2=given["gaussian_weight"],
            sigma_gamma=given["gaussian_sxy"],
            iterations=count,
        )
        exact, fast = dense_crf_exact(probs, image, crf), dense_crf(probs, image, crf)
        brute = torch.from_numpy(fixture.arrays[f"exact_{count}"])
        assert (exact - brute).abs().max() <= 1e-4
        library = torch.from_numpy(fixture.arrays[f"pydensecrf_{count}"])
        assert (fast - library).abs().max() <= 1e-3  # float32 noise grows with the iterations
        if count == 1:
            assert (fast - exact).abs().max() <= LARGEST_AFTER_ONE
        assert (fast.argmax(0) == exact.argmax(0)).float().mean() >= LEAST_AGREEMENT
