"""Entries that a user can copy are entries: benchmarks/recipes.yaml."""

import pytest
from conftest import ROOT
from ruamel.yaml import YAML

from convoy.schema import prepare
from stages.train import train

RECIPES = YAML(typ="safe").load(ROOT / "benchmarks/recipes.yaml")


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_has_entries_that_the_stages_take(name):
    recipe = RECIPES[name]
    assert set(recipe) - {"raw", "seeds"} == {"ingest", "augment", "train"}
    for stage in ("ingest", "augment"):
        prepare(stage, "data", recipe[stage])
    _, arguments = prepare("train", "model", {"dataset": "data"} | recipe["train"])
    kind = recipe["ingest"]["kind"]
    train.check_kind(name, arguments["architecture"], "data", kind)
    train.check_keys(name, kind, arguments)
