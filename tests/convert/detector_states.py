"""State dicts of released detectors and of their variants: real key lists, shapes, no values."""

import re

import pytest
import torch

from tests.fixtures import fixture_paths, load_fixture


def state_of(name):
    """A fixture's state dict without its memory: only keys and shapes matter here."""
    found = fixture_paths("instance", name)
    if not found:
        pytest.skip(f"no fixture {name}; set PIXELWISE_PARITY")
    listed = load_fixture(found[0]).meta["state_dict"]
    return {key: torch.empty(shape, device="meta") for key, shape, *_ in listed}


def empty(*shape):
    return torch.empty(shape, device="meta")


def deepen(state, block, count):
    """Repeat the last block of a stage until there are `count`."""
    result = dict(state)
    numbers = [int(m[1]) for key in state if (m := re.match(re.escape(block) + r"(\d+)\.", key))]
    last = max(numbers)
    for key, value in state.items():
        if key.startswith(f"{block}{last}."):
            for number in range(last + 1, count):
                result[key.replace(f"{block}{last}.", f"{block}{number}.", 1)] = value
    return result


def widen(state, groups, group_width, *, first):
    """ResNet-50's bottlenecks with the inner widths of a ResNeXt."""
    result = {}
    for key, value in state.items():
        match = re.search(r"(?:layer|res)(\d)\.\d+\.(conv|bn)(\d)\.(norm\.)?(\w+)$", key)
        shape = list(value.shape)
        if match and match[3] in "12" and shape:
            inner = group_width * groups << (int(match[1]) - first)
            shape[0] = inner
            if match[2] == "conv" and not match[4] and match[3] == "2":
                shape[1] = inner // groups
        elif match and match[2] == "conv" and match[3] == "3" and not match[4]:
            shape[1] = group_width * groups << (int(match[1]) - first)
        result[key] = empty(*shape)
    return result


def with_classes(state, count, keys):
    """Another number of rows per class; `keys` gives rows per class and extra rows."""
    result = dict(state)
    for prefix, (per_class, extra) in keys.items():
        for key in [k for k in state if k.startswith(prefix)]:
            result[key] = empty(count * per_class + extra, *state[key].shape[1:])
    return result
