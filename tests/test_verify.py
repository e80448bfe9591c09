"""The references that ship with the package, and what `verify` says of files."""

import pytest
import torch

from pixelwise.convert import origins
from pixelwise.convert.recognise import base_rows, recognise
from pixelwise.convert.reference import (
    TOLERANCE,
    compare,
    made_picture,
    made_weights,
    references,
    sampled,
    shapes_of,
)
from pixelwise.verify import verify
from tests.fixtures import fill, image
from tests.foreign import mmseg_file, semseg_file

ALL = references()
HEAVY = {
    "caffe",
    "zijundeng",
    "efficientfcn",
    "fcis",
    "detectron2",
    "maskscoring",
    "deeplab-pytorch",
}


def marked(pairs):
    slow = pytest.mark.slow
    return [pytest.param(o, n, id=f"{o}-{n}", marks=[slow] if o in HEAVY else []) for o, n in pairs]


def test_every_converter_has_a_reference() -> None:
    pairs = {(origin, row) for row in base_rows().values() for origin in origins(row)}
    assert set(ALL) == pairs
    assert all(reference.outputs for reference in ALL.values())


@pytest.mark.parametrize(("origin", "name"), marked(ALL))
def test_this_installation_computes_the_stored_outputs(origin, name) -> None:
    for difference in compare(ALL[origin, name]):
        assert difference.worst <= TOLERANCE * difference.scale, difference


@pytest.mark.parametrize(("origin", "name"), [pytest.param(*p, id="-".join(p)) for p in ALL])
def test_a_reference_is_recognised_as_what_it_is(origin, name) -> None:
    shapes = shapes_of(origin, name, ALL[origin, name].settings)
    match = recognise({key: torch.ones(()).expand(shape) for key, shape in shapes.items()})
    assert (match.origin, match.name) == (origin, name)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("a.weight", (3, 2, 1, 1)),
        ("a.bias", (4,)),
        ("a.running_var", (5,)),
        ("a.running_mean", (5,)),
        ("bn.weight", (2,)),
        ("n.num_batches_tracked", ()),
        ("scales.0.scale", (1,)),
    ],
)
def test_made_weights_are_those_of_the_fixtures(name, shape) -> None:
    """So that what the parity tests prove holds for the references too."""
    assert torch.equal(made_weights(name, shape), fill(name, shape))
    assert torch.equal(made_picture((1, 3, 4, 5), 7), image((1, 3, 4, 5), 7))


def test_a_wrong_network_is_noticed() -> None:
    """A converter that mixes up two rows of a classifier would not pass."""
    reference = ALL["semseg", "pspnet"]
    good = compare(reference)
    stored = reference.outputs["logits"]
    changed = {"logits": {**stored, "values": stored["values"][::-1]}}
    from dataclasses import replace

    bad = compare(replace(reference, outputs=changed))
    assert all(d.ok for d in good)
    assert not any(d.ok for d in bad)
    shape = {"logits": {**stored, "shape": [1, 2, 3]}}
    assert not compare(replace(reference, outputs=shape))[0].ok


def test_sampling_takes_both_ends() -> None:
    values = torch.arange(1000.0)
    assert (sampled(values)[0], sampled(values)[-1]) == (0, 999)
    assert sampled(torch.tensor([3.0])) == [3.0]


def test_a_foreign_file(tmp_path) -> None:
    found = verify(mmseg_file(tmp_path))
    assert (found.origin, found.name) == ("mmseg", "pspnet")
    assert found.returned == found.tensors
    assert found.ok


def test_one_of_ours_that_was_converted(tmp_path) -> None:
    from pixelwise.importing import import_file

    import_file(semseg_file(tmp_path)).save(tmp_path / "ours.safetensors")
    found = verify(tmp_path / "ours.safetensors")
    assert (found.origin, found.returned) == ("semseg", None)
    assert found.ok


def test_weights_that_are_no_numbers(tmp_path) -> None:
    path = semseg_file(tmp_path)
    content = torch.load(path, weights_only=True)
    content["state_dict"]["module.cls.0.weight"][0, 0] = torch.nan
    torch.save(content, path)
    found = verify(path)
    assert found.not_finite == ("cls.0.weight",)
    assert not found.ok
