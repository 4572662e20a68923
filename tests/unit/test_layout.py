"""The words agree: stage = folder = file = function = section of params.yaml = group of dvc.yaml."""

import ast
import re
import tomllib
from graphlib import TopologicalSorter
from importlib import import_module

import grimp
import pytest
from conftest import ROOT
from ruamel.yaml import YAML

from convoy import dependencies, params

DVC = YAML(typ="safe", pure=True).load((ROOT / "dvc.yaml").read_text())["stages"]
LOCKS = ("requirements.lock", "requirements-gpu.lock", "requirements-benchmarks.lock")
FILES = {"__init__", "__main__", "check", "lineage", "search_space"}  # of stages, beside the folders of stages


def test_a_folder_of_stages_is_a_stage():
    folders = {path.name for path in (ROOT / "stages").iterdir() if path.is_dir() and path.name != "__pycache__"}
    files = {path.stem for path in (ROOT / "stages").glob("*.py")}
    assert folders == set(params.STAGES) == set(DVC)
    assert files == FILES


@pytest.mark.parametrize("stage", params.STAGES)
def test_a_stage_is_a_function_of_its_own_name(stage):
    assert callable(getattr(import_module(f"stages.{stage}.{stage}"), stage))
    assert DVC[stage]["do"]["cmd"] == f"python -m stages {stage} ${{key}}"
    assert (ROOT / "tests/stages" / f"test_{stage}.py").exists()


@pytest.mark.parametrize("stage", params.STAGES)
def test_dvc_iterates_over_the_section_and_depends_on_code_that_exists(stage):
    assert DVC[stage]["foreach"] == "${" + ("train" if stage == "evaluate" else stage) + "}"
    entries = params.load(ROOT / "params.yaml")["train" if stage == "evaluate" else stage]
    for dep in DVC[stage]["do"]["deps"]:
        for entry in entries.values():
            path = re.sub(r"\$\{item\.(\w+)\}", lambda key, entry=entry: entry[key[1]], dep)
            assert path.startswith("data/") or (ROOT / path).exists(), path


@pytest.mark.parametrize("stage", params.STAGES)
def test_dvc_depends_on_the_code_that_can_change_the_result_and_on_no_other(stage):
    architecture = "lenet5" if stage == "train" else None
    found = set()
    for dep in DVC[stage]["do"]["deps"]:
        path = ROOT / dep.replace("${item.architecture}", "lenet5")
        if not dep.startswith("data/"):
            found |= {*path.rglob("*.py")} if path.is_dir() else {path}
    found = {path.relative_to(ROOT) for path in found if path.suffix == ".py" and path.name != "__init__.py"}
    assert found == {*map(dependencies.file, dependencies.stage(stage, architecture))}


def test_no_imports_form_a_circle():
    graph = grimp.build_graph("flows", "stages", "convoy", cache_dir=None, exclude_type_checking_imports=True)
    imports = {module: graph.modules & graph.find_modules_directly_imported_by(module) for module in graph.modules}
    TopologicalSorter(imports).prepare()  # raises a CycleError that names the circle


@pytest.mark.parametrize("stage", params.STAGES)
def test_a_stage_writes_into_its_own_folder_only(stage):
    do = DVC[stage]["do"]
    outs = do["outs"] + do.get("metrics", []) + do.get("plots", [])
    place = {"fetch": "raw"}.get(stage, stage)
    for out in outs:
        path = next(iter(out)) if isinstance(out, dict) else out
        assert path.startswith(f"data/{place}/")


@pytest.mark.parametrize("path", sorted((ROOT / "stages/train/architectures").glob("[!_]*.py")), ids=lambda p: p.stem)
def test_an_architecture_is_one_file_with_a_build_function_and_no_class(path):
    tree = ast.parse(path.read_text())
    functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
    arguments = [argument.arg for argument in functions["build"].args.args]
    [kind] = [node.value.value for node in tree.body if isinstance(node, ast.Assign) and node.targets[0].id == "KIND"]
    first = {"text": ["words", "classes"], "translation": ["source_words", "target_words"]}
    assert arguments[:2] == first.get(kind, ["input_shape", "classes"])
    assert "width" in arguments
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]


def test_no_file_names_a_registry_host_or_a_folder_of_one_machine():
    hosts = re.compile(r"(py" + r"pi|python" + r"hosted|npm" + r"js)\.org|/(ro" + r"ot|ho" + r"me)/\w")
    files = [ROOT / name for name in ("Makefile", *LOCKS, "params.yaml", "dvc.yaml")]
    folders = ("convoy", "stages", "flows", "tests", "benchmarks")
    files += [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    files += list(ROOT.glob("*.md")) + list((ROOT / "benchmarks").glob("*.md"))
    assert [path.name for path in files if hosts.search(path.read_text())] == []


def test_the_locks_hold_what_pyproject_asks_for():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = project["dependencies"] + project["optional-dependencies"]["dev"]
    names = {re.match(r"[\w.-]+", line)[0].lower().replace(".", "-") for line in wanted}
    for lock in LOCKS:
        text = (ROOT / lock).read_text()
        locked = {line.split("==")[0].replace(".", "-") for line in text.splitlines() if re.match(r"[a-z]", line)}
        assert names <= locked
        assert text.count("--hash=sha256:") > len(locked)


def test_every_fault_that_readme_promises_to_survive_has_its_test_and_the_other_way_round():
    promised = re.findall(r"^\| (\d\d) \|", (ROOT / "README.md").read_text(), re.MULTILINE)
    code = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    assert promised == sorted(set(re.findall(r"^def test_fault_(\d\d)_", code, re.MULTILINE)))
    assert len(promised) == 47
