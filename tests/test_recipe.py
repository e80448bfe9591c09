"""Recipes: what is read, what is merged, and what a wrong one is told."""

from dataclasses import fields
from pathlib import Path

import pytest

from pixelwise.errors import UsageError
from pixelwise.spec import AugmentSpec, DataRecipe, Recipe, ResizeRule
from pixelwise.training import recipe as recipes

GOOD = """
model: deeplabv3plus
data: city.yaml
run: {steps: 100}
"""


def write(folder: Path, text: str, name: str = "r.yaml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_short_forms_and_defaults(tmp_path):
    recipe = recipes.read(write(tmp_path, GOOD))
    assert recipe.model.name == "deeplabv3plus"
    assert recipe.data.source == "city.yaml"
    assert recipe.data.batch_size == 8
    assert recipe.data.augment == AugmentSpec()


def test_augment_keys_are_those_of_augment_spec():
    for field in fields(AugmentSpec):
        assert DataRecipe.model_fields[field.name].default == field.default


def test_overrides_win_and_are_typed(tmp_path):
    words = ["optim.lr=1e-3", "data.crop=[64, 96]", "run.epochs=3", "model.backbone=resnet18"]
    recipe = recipes.read(write(tmp_path, GOOD), [*words, "data.resize.short_side=200"])
    assert recipe.optim.lr == 1e-3
    assert recipe.data.crop == (64, 96)
    assert recipe.run.epochs == 3
    assert recipe.run.steps is None, "epochs replaces the file's steps"
    assert recipe.model.config == {"backbone": "resnet18"}
    assert recipe.data.resize == ResizeRule(short_side=200)


def test_resolved_recipe_reads_back_equal(tmp_path):
    recipe = recipes.read(
        write(tmp_path, GOOD), ["model.backbone=resnet18", "optim.ema_decay=0.99"]
    )
    assert recipes.read(write(tmp_path, recipes.dump(recipe), "again.yaml")) == recipe


def test_extends_one_level(tmp_path):
    write(tmp_path, GOOD, "base.yaml")
    child = write(tmp_path, "extends: base.yaml\noptim: {lr: 0.5}\nrun: {seed: 4}", "child.yaml")
    recipe = recipes.read(child)
    assert (recipe.optim.lr, recipe.run.steps, recipe.run.seed) == (0.5, 100, 4)
    grandchild = write(tmp_path, "extends: child.yaml", "grandchild.yaml")
    with pytest.raises(UsageError, match="only one level"):
        recipes.read(grandchild)


def test_dotted_keys_nest():
    tree = recipes.nest({"optim.lr": 0.1, "optim.name": "sgd", "out": "x"})
    assert tree == {"optim": {"lr": 0.1, "name": "sgd"}, "out": "x"}


BAD = [
    ("optim: {lrr: 0.1}", ["optim.lrr", "did you mean 'lr'"]),
    ("optim: {lr: fast}", ["optim.lr", "'fast'", "expected a valid number"]),
    ("optim: {lr: -1}", ["optim.lr", "-1", "greater than or equal to 0"]),
    ("optim: {lr: .nan}", ["optim.lr", "nan", "finite"]),
    ("optim: {name: adam}", ["optim.name", "'adam'", "'sgd' or 'adamw'"]),
    ("optimizer: {lr: 1}", ["optimizer", "did you mean 'optim'"]),
    ("data: {source: x, crop: 7}", ["data.crop", "7", "tuple"]),
    ("data: {source: x, batch_size: 2.5}", ["data.batch_size", "2.5", "integer"]),
    ("data: {source: x, resize: {short: 3}}", ["data.resize.short", "did you mean 'short_side'"]),
    ("data: {batch_size: 2}", ["data.source", "missing"]),
    ("run: {steps: 3, epochs: 3}", ["run", "exactly one of steps and epochs"]),
    ("model: {backbone: x}", ["model.name is missing"]),
    ("model: [1, 2]", ["model", "dictionary"]),
    ("- 1", ["mapping of sections"]),
    ("optim: {lr: [", ["not valid YAML", "r.yaml:"]),
    ("extends: [a]", ["extends", "one recipe"]),
    ("extends: nowhere.yaml", ["no recipe", "nowhere.yaml"]),
]


@pytest.mark.parametrize(("text", "words"), BAD, ids=[b[0] for b in BAD])
def test_wrong_recipes_name_key_value_and_fix(tmp_path, text, words):
    lines = [x for x in GOOD.strip().splitlines() if x.split(":")[0] not in text.split(":")[0]]
    path = write(tmp_path, text if text.startswith("-") else "\n".join([*lines, text]))
    with pytest.raises(UsageError) as caught:
        recipes.read(path)
    for word in [*words, "r.yaml" if "nowhere" not in text else "nowhere"]:
        assert word in str(caught.value)


@pytest.mark.parametrize("word", ["optim.lr", "=3", "optim.lr=[1"])
def test_wrong_overrides(tmp_path, word):
    with pytest.raises(UsageError, match=r"override|YAML"):
        recipes.read(write(tmp_path, GOOD), [word])


def test_missing_binary_and_folder(tmp_path):
    with pytest.raises(UsageError, match="no recipe"):
        recipes.read(tmp_path / "none.yaml")
    with pytest.raises(UsageError, match="is a folder"):
        recipes.read(tmp_path)
    binary = tmp_path / "b.yaml"
    binary.write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(UsageError, match="not a text file"):
        recipes.read(binary)


@pytest.mark.parametrize("name", recipes.packaged_recipes())
def test_packaged_recipes_are_valid(name):
    with pytest.raises(UsageError, match=r"data.source is missing; add it, or pass data.source="):
        recipes.read(name)
    recipe = recipes.read(name, ["data.source=somewhere"])
    assert isinstance(recipe, Recipe)
    if recipe.model.name:
        recipes.check_config(recipe.model.name, recipe.model.config)


def test_config_keys_are_checked_against_the_system():
    with pytest.raises(UsageError, match=r"model.backbon is not .* did you mean 'backbone'"):
        recipes.check_config("deeplabv3plus", {"backbon": "resnet18"})
    with pytest.raises(UsageError, match=r"model.output_stride = 'x'.*integer"):
        recipes.check_config("deeplabv3plus", {"output_stride": "x"})
