"""Entries of params.yaml are models: described, quick to import, and known to editors by a JSON schema."""

import json
import subprocess
import sys

import jsonschema
import pytest
from conftest import ROOT
from ruamel.yaml import YAML

from convoy import params
from stages import check

SECTIONS = [*(stage for stage in params.STAGES if stage != "evaluate"), params.TUNE]
FIRST_LINE = "# yaml-language-server: $schema=params.schema.json"


@pytest.fixture(scope="module")
def schema():
    return json.loads((ROOT / check.SCHEMA).read_text(encoding="utf-8"))


@pytest.fixture
def sections():
    return YAML(typ="safe", pure=True).load((ROOT / "params.yaml").read_text(encoding="utf-8"))


def test_the_schema_is_that_of_the_entries(schema):
    expected = json.loads(json.dumps(check.json_schema()))  # without tuples
    assert schema == expected, "run: convoy schema"


def test_the_schema_is_valid_and_params_yaml_names_and_keeps_it(schema, sections):
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.Draft202012Validator(schema).validate(sections)
    assert (ROOT / "params.yaml").read_text(encoding="utf-8").splitlines()[0] == FIRST_LINE


@pytest.mark.parametrize(
    ("section", "name", "entry", "message"),
    [
        ("train", "a", {"dataset": "digits", "architecture": "lenet5", "learning_rate": 0.1}, "'epochs' is a required"),
        (
            "train",
            "a",
            {"dataset": "d", "architecture": "resnext", "epochs": 1, "learning_rate": 0},
            "'resnext' is not",
        ),
        ("train", "a", {"dataset": "d", "architecture": "text_cnn", "sizes": {"deep": 1}}, "'deep' was unexpected"),
        ("train", "a b", {"dataset": "d", "architecture": "text_cnn"}, "'a b' does not match"),
        ("ingest", "a", {"kind": "pictures"}, "'pictures' is not one of"),
        ("augment", "a", {"copies": 0, "seed": 1, "turns": []}, "'turns' was unexpected"),
        ("fetch", "a", {"max_bytes": 0}, "0 is not valid"),
        ("tune", "a", {"trials": 0}, "0 is less than the minimum"),
    ],
)
def test_an_editor_marks_what_check_would_refuse(schema, sections, section, name, entry, message):
    sections[section][name] = entry
    found = [error.message for error in jsonschema.Draft202012Validator(schema).iter_errors(sections)]
    assert any(message in one for one in found), found


def test_an_editor_takes_what_fetch_takes(schema, sections):
    sections["fetch"] |= {
        "one": {"urls": "https://example.org/x", "max_bytes": "5 GB"},
        "some": {"urls": ["https://example.org/x", {"url": "https://example.org/y", "sha256": "0" * 64}]},
    }
    jsonschema.Draft202012Validator(schema).validate(sections)


@pytest.mark.parametrize("section", SECTIONS)
def test_every_key_is_described(schema, section):
    assert [name for name, key in schema["$defs"][section.capitalize()]["properties"].items()
            if "description" not in key] == []  # fmt: skip


def test_a_search_that_writes_its_values_keeps_the_line_that_names_the_schema(workspace):
    text = FIRST_LINE + "\ntrain:\n  a: {dataset: d, epochs: 3}\n"
    text += "".join(f"{section}: {{}}\n" for section in SECTIONS if section not in ("train", params.TUNE))
    (workspace / "params.yaml").write_text(text)
    params.write({("train", "a", "epochs"): 5})
    assert (workspace / "params.yaml").read_text() == text.replace("epochs: 3", "epochs: 5")


def test_entries_are_read_without_what_the_stages_compute_with():
    modules = ", ".join(["stages.search_space", *(f"stages.{stage}.entry" for stage in params.STAGES)])
    code = f"import sys, {modules}; print({{'keras', 'tensorflow', 'pandas', 'mlflow'}} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
