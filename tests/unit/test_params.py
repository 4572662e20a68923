import pytest
from conftest import ROOT

from convoy import params
from convoy.errors import ConfigurationError


def write(workspace, text):
    """Writes params.yaml; sections that the text leaves out are empty."""
    empty = "".join(f"{s}: {{}}\n" for s in ("fetch", "ingest", "augment", "train", "register") if f"{s}:" not in text)
    (workspace / "params.yaml").write_text(empty + text)


def test_reads_an_entry_as_keyword_arguments(workspace):
    write(workspace, "train: {a: {dataset: digits, learning_rate: 1e-3}}")
    assert params.read("train", "a") == {"dataset": "digits", "learning_rate": 0.001}  # YAML 1.2: a number


def test_evaluate_follows_the_names_of_train(workspace):
    write(workspace, "train: {a: {dataset: digits, epochs: 3}}")
    assert params.read("evaluate", "a") == {"dataset": "digits"}


def test_models_are_those_of_the_data_set_in_the_order_of_the_file():
    assert params.models("digits", ROOT / "params.yaml") == ["lenet5", "plain_cnn", "alexnet", "googlenet", "resnet"]
    assert params.models("birds", ROOT / "params.yaml") == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train: {a: 1}", r"train\.a: 1 is not a mapping"),
        ("train: {}\ntrian: {}", r"register, train, trian. It needs just these"),
        ("train: [a]", r"train: \['a'\] is not a mapping of names"),
        ("train: {a: {x: 1}}\ntrain: {}", "line 6"),
        ("train: {a: [}", "line 5"),
        ("train:\n\ta: {}", "indent with spaces"),
        ("train: lenet5", "'lenet5' is not a mapping of names"),
        ("train: {2024: {}}", "the name 2024 cannot be used; letters, digits"),
        ("train: {my.model: {}}", "the name 'my.model' cannot be used"),
        ("train: {res net: {}}", "the name 'res net' cannot be used"),
        ("train: {'a;b': {}}", "the name 'a;b' cannot be used"),
        ("train: {a: {x: \x07}}", "params.yaml"),
    ],
)
def test_says_where_the_file_is_wrong(workspace, text, message):
    write(workspace, text)
    with pytest.raises(ConfigurationError, match=message):
        params.load()


@pytest.mark.parametrize(("text", "found"), [("", "NoneType"), ("ingest: {}", "ingest")])
def test_a_missing_section_is_named_before_dvc_stumbles_over_it(workspace, text, found):
    (workspace / "params.yaml").write_text(text)
    with pytest.raises(ConfigurationError, match=rf"has the sections {found}\. .*fetch: \{{\}}"):
        params.load()


def test_a_file_that_is_not_utf_8_is_named(workspace):
    (workspace / "params.yaml").write_bytes("# für\n".encode("latin-1"))
    with pytest.raises(ConfigurationError, match="params.yaml is not UTF-8"):
        params.load()


def test_says_what_exists_for_an_unknown_name_or_stage(workspace):
    write(workspace, "train: {lenet5: {}, resnet: {}}")
    with pytest.raises(ConfigurationError, match=r"no train entry 'lenet6'. Entries: lenet5, resnet"):
        params.read("train", "lenet6")
    with pytest.raises(ConfigurationError, match=r"unknown stage 'trian'. Stages: fetch, ingest"):
        params.read("trian", "lenet5")


def test_says_where_it_looked_for_the_file(workspace):
    with pytest.raises(ConfigurationError, match=r"params.yaml not found in .*root of the checkout"):
        params.load()
