"""Recipes: from YAML, dotted overrides and at most one `extends` to a validated `Recipe`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from difflib import get_close_matches
from importlib.resources import files
from pathlib import Path
from typing import Any, cast

import yaml
from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from pixelwise.errors import UsageError
from pixelwise.spec import ModelRecipe, Recipe, ResizeRule

Tree = dict[str, Any]

# A section may be written as the one value that matters most.
_SHORT_FORMS = {"model": "name", "data": "source"}


def packaged_recipes() -> list[str]:
    """Names of the recipes that ship with pixelwise."""
    folder = files("pixelwise") / "recipes"
    return sorted(f.name.removesuffix(".yaml") for f in folder.iterdir() if f.name.endswith("yaml"))


def read(source: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe, apply `section.key=value` overrides, and validate it.

    Args:
        source:    path of a YAML file, or the name of a packaged recipe.
        overrides: such as "optim.lr=0.01"; values are read as YAML.

    Raises:
        UsageError: no such recipe, broken YAML, an unknown key or a value of the wrong type; the
            message names file, key, value and what was expected.
    """
    tree = _merge(_load_with_base(source), parse_overrides(overrides))
    return validate(tree, origin=str(source))


def validate(tree: Mapping[str, Any], *, origin: str = "recipe") -> Recipe:
    """A `Recipe` of nested plain values.

    Args:
        tree:   sections with their keys; `model` and `data` may be a single string.
        origin: file name for messages.

    Raises:
        UsageError: an unknown key or a value of the wrong type.
    """
    try:
        recipe = Recipe.model_validate(_expand(tree))
    except ValidationError as error:
        raise UsageError(_explain(error.errors(), origin)) from None
    if recipe.model.name is None and recipe.model.weights is None:
        raise UsageError(
            f"{origin}: model.name is missing; `pixelwise models list` shows the names"
        )
    return recipe


def check_config(name: str, values: Mapping[str, Any], *, origin: str = "recipe") -> Tree:
    """Check the model keys of a recipe against the system's config.

    Args:
        name:   row of `SYSTEMS`.
        values: fields to change.
        origin: file name for messages.

    Returns:
        The values, brought to the types of the fields (lists become tuples).

    Raises:
        UsageError: no such field, or a value of the wrong type.
    """
    from pixelwise.systems import find

    config = type(find(name).config)
    own = list(ModelRecipe.model_fields)
    known = [f.name for f in fields(config)]
    for key in values:
        if key not in known:
            raise UsageError(f"{origin}: {_unknown(f'model.{key}', key, [*known, *own])}")
    try:
        checked = TypeAdapter(config).validate_python(dict(values))
    except ValidationError as error:
        details = [{**e, "loc": ("model", *e["loc"])} for e in error.errors()]
        raise UsageError(_explain(cast("list[ErrorDetails]", details), origin)) from None
    except ValueError as error:
        raise UsageError(f"{origin}: model: {error}") from None
    return {key: getattr(checked, key) for key in values}


def parse_overrides(overrides: Sequence[str]) -> Tree:
    """Nested values of `section.key=value` words.

    Raises:
        UsageError: a word without "=" or with a value that is no YAML.
    """
    tree: Tree = {}
    for word in overrides:
        key, equals, text = word.partition("=")
        if not equals or not key:
            raise UsageError(f"{word!r} is no override; write key=value, as in optim.lr=0.01")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError:
            raise UsageError(f"{word!r}: the value is not valid YAML; quote it") from None
        tree = _merge(tree, nest({key: value}))
    return tree


def nest(values: Mapping[str, Any]) -> Tree:
    """Turn dotted keys into nested sections: {"optim.lr": 1} becomes {"optim": {"lr": 1}}."""
    tree: Tree = {}
    for dotted, value in values.items():
        *sections, last = dotted.split(".")
        branch: Any = value
        for part in [last, *reversed(sections)]:
            branch = {part: branch}
        tree = _merge(tree, branch)
    return tree


def merge(*layers: Mapping[str, Any]) -> Tree:
    """Nested values, later layers over earlier ones."""
    tree: Tree = {}
    for layer in layers:
        tree = _merge(tree, layer)
    return tree


def dump(recipe: Recipe) -> str:
    """The resolved recipe as YAML; `read` gives the same recipe back."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, width=100)


def _load_with_base(source: str | Path) -> Tree:
    path = _locate(source, Path())
    tree = _load(path)
    if (base := tree.pop("extends", None)) is None:
        return tree
    if not isinstance(base, str):
        raise UsageError(f"{path}: extends = {base!r}: expected the name or path of one recipe")
    base_path = _locate(base, path.parent)
    base_tree = _load(base_path)
    if "extends" in base_tree:
        raise UsageError(
            f"{path}: extends {base}, which itself extends {base_tree['extends']!r}; "
            "only one level is allowed: copy the keys you need"
        )
    return _merge(base_tree, tree)


def _locate(source: str | Path, folder: Path) -> Path:
    """The file of a recipe: a path (relative to `folder`) or the name of a packaged one."""
    path = folder / source
    if path.is_file():
        return path
    packaged = Path(str(files("pixelwise") / "recipes" / f"{source}.yaml"))
    if Path(source).name == str(source) and packaged.is_file():
        return packaged
    if path.is_dir():
        raise UsageError(f"{path} is a folder, not a recipe; name a YAML file in it")
    close = get_close_matches(str(source), packaged_recipes(), n=2)
    hint = f"did you mean {' or '.join(close)}?" if close else f"pixelwise ships {_list_recipes()}"
    raise UsageError(f"no recipe {str(source)!r}: neither a file nor a packaged one; {hint}")


def _list_recipes() -> str:
    return ", ".join(packaged_recipes()) or "none"


def _load(path: Path) -> Tree:
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        problem = getattr(error, "problem", None) or "cannot be read"
        raise UsageError(f"{where}: not valid YAML: {problem}") from None
    except UnicodeDecodeError:
        raise UsageError(f"{path}: not a text file; a recipe is YAML") from None
    if not isinstance(tree, dict):
        raise UsageError(f"{path}: a recipe is a YAML mapping of sections, such as `model:`")
    return cast("Tree", tree)


def _expand(tree: Mapping[str, Any]) -> Tree:
    """Short forms written out: `model: NAME`, `data: SOURCE`."""
    expanded = dict(tree)
    for section, key in _SHORT_FORMS.items():
        if isinstance(value := expanded.get(section), str | Path):
            expanded[section] = {key: str(value)}
    return expanded


def _merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> Tree:
    """`over` on top of `base`, section by section; lists are replaced, not joined."""
    base, over = _expand(base), _expand(over)
    merged = dict(base)
    for key, value in over.items():
        mine = merged.get(key)
        if isinstance(mine, Mapping) and isinstance(value, Mapping):
            mine = cast("Mapping[str, Any]", mine)
            value = cast("Mapping[str, Any]", value)
            if key == "run" and ("steps" in value) != ("epochs" in value):
                # The two exclude each other: whoever names one replaces the other.
                mine = {k: v for k, v in mine.items() if k not in ("steps", "epochs")}
            merged[key] = _merge(mine, value)
        else:
            merged[key] = value
    return merged


def _explain(errors: Sequence[ErrorDetails], origin: str) -> str:
    """One line per problem: key, value, what was expected."""
    lines = dict.fromkeys(_explain_one(error) for error in errors)
    return "\n".join(f"{origin}: {line}" for line in lines)


def _explain_one(error: ErrorDetails) -> str:
    path = [part for part in error["loc"] if not str(part).startswith(("function-", "tuple["))]
    key = ".".join(str(part) for part in path)
    if error["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        return _unknown(key, str(path[-1]), _keys_of(path[:-1]))
    if error["type"] == "missing":
        return f"{key} is missing; add it, or pass {key}=VALUE"
    message = error["msg"].replace("Input should be ", "").removeprefix("Value error, ")
    if error["type"] == "value_error":
        return f"{key}: {message}"
    if isinstance(value := error["input"], Mapping) and len(cast("Tree", value)) > 3:
        return f"{key}: expected {message}"
    return f"{key} = {error['input']!r}: expected {message}"


def _unknown(key: str, last: str, known: Sequence[str]) -> str:
    close = get_close_matches(last, known, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"known keys: {', '.join(known)}"
    return f"{key} is not a key of a recipe; {hint}"


def _keys_of(path: Sequence[int | str]) -> list[str]:
    """The keys that a section of the recipe has."""
    section: Any = Recipe
    for part in path:
        if part == "resize":
            return [f.name for f in fields(ResizeRule)]
        section = cast("type[BaseModel]", section).model_fields[str(part)].annotation
    return list(cast("type[BaseModel]", section).model_fields)
