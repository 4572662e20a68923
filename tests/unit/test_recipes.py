"""Entries that a user can copy are entries: benchmarks/recipes.yaml."""

import pytest
from conftest import ROOT
from ruamel.yaml import YAML

from stages.check import prepare

RECIPES = YAML(typ="safe").load(ROOT / "benchmarks/recipes.yaml")


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_has_entries_that_the_stages_take(name):
    recipe = RECIPES[name]
    assert set(recipe) - {"raw", "seeds"} == {"ingest", "augment", "train"}
    for stage in ("ingest", "augment"):
        prepare(stage, "data", recipe[stage])
    entry = prepare("train", "model", {"dataset": "data"} | recipe["train"])
    entry.check_kind(name, recipe["ingest"]["kind"])
