"""The graph is the one that DVC shows and works by."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from convoy.errors import ConfigurationError
from convoy.repo import graph


@pytest.fixture
def checkout(monkeypatch):
    monkeypatch.chdir(ROOT)


def shown(*targets):
    """Returns {stage: what it needs} as ``dvc dag`` prints it."""
    program = Path(sys.executable).parent / "dvc"
    text = subprocess.run([program, "dag", "--md", *targets], capture_output=True, text=True, check=True).stdout
    names = dict(re.findall(r'(node\d+)\["(.+?)"\]', text))
    needs = {name: set() for name in names.values()}
    for need, name in re.findall(r"(node\d+)-->(node\d+)", text):
        needs[names[name]].add(names[need])
    return needs


@pytest.mark.slow
@pytest.mark.parametrize("targets", [(), ("train@lenet5",), ("evaluate@resnet",)], ids=str)
def test_it_is_what_dvc_dag_prints(checkout, targets):
    nodes = graph.read(targets)
    assert {name: set(node.needs) for name, node in nodes.items()} == shown(*targets)


def test_every_stage_comes_after_what_it_needs(checkout):
    names = list(graph.read())
    for name, node in graph.read().items():
        assert all(names.index(need) < names.index(name) for need in node.needs)


def test_a_kind_of_stage_means_all_of_it(checkout):
    assert graph.read(["train"]).keys() == {
        name for name in graph.read() if re.match("fetch|ingest|augment|train", name)
    }


def test_an_unknown_target_is_named_with_those_that_exist(checkout):
    with pytest.raises(ConfigurationError, match=r"no stage 'train@lenet6'\. Stages: .*train@lenet5"):
        graph.read(["train@lenet6"])


def test_outside_a_checkout_dvc_says_so(workspace):
    with pytest.raises(ConfigurationError, match="DVC cannot read this checkout"):
        graph.read()


@pytest.mark.slow
def test_changes_are_told_by_path_and_key(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    program = Path(sys.executable).parent / "dvc"
    (tmp_path / "params.yaml").write_text("a: {x: 1, y: 1}\n")
    (tmp_path / "code").write_text("1")
    (tmp_path / "dvc.yaml").write_text(
        "stages:\n  one:\n    cmd: echo > out\n    params: [a.x, a.y]\n    deps: [code]\n    outs: [out]\n"
        "  two:\n    cmd: cat out\n    deps: [out]\n"
    )
    subprocess.run([program, "init", "--no-scm", "-q"], check=True)
    subprocess.run([program, "repro", "-q"], check=True, stdout=subprocess.DEVNULL)
    assert graph.changes(["one", "two"]) == {"one": [], "two": []}
    (tmp_path / "params.yaml").write_text("a: {x: 1, y: 2}\n")
    (tmp_path / "code").write_text("2")
    assert sorted(graph.changes(["one", "two"])["one"]) == ["a.y modified", "code modified"]
    (tmp_path / "out").unlink()
    assert "out deleted" in graph.changes(["two"])["two"]
