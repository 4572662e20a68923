"""A kind of data is one file: what is known about it stands there, and nobody else compares its name."""

import ast
import sys
from textwrap import dedent

import numpy as np
import pytest
from conftest import ROOT

from convoy import dependencies, kinds
from convoy.errors import ConfigurationError, InputRefusedError
from convoy.kinds import base

# Files that compare a name of a kind, or have a table by kind, and why.
ALLOWED = {
    "convoy/data/shards.py": "`text` is a type of arrays there",
    "stages/ingest/formats/containers.py": "`images` is a word in names of files there",
    # An edit of how raw data are read must not train anything again, so training does not import convoy.kinds.
    "stages/train/entry.py": "",
    "stages/train/fit/input_spec.py": "",
    "stages/train/fit/optimisation.py": "",
}
SOUNDS = """
    from convoy.kinds.base import Example, Kind

    def decode(data, **_):
        return Example(bytes(32), {"sound": data[0]}, {})

    KIND = Kind(name="sounds", noun="sound", arrays=("sound",), decode=decode, prepare=None, pack=None, sent="binary",
                reads="A sound.", axes=1, per_class=3)
"""


@pytest.mark.parametrize("name", kinds.NAMES)
def test_a_kind_says_what_every_stage_asks_of_it(name):
    kind = kinds.get(name)
    assert kind.name == name
    assert kind.arrays
    assert kind.noun
    assert kind.per_class
    assert (kind.explained[0] > 0) == (kind.errors > 0) == kind.has_classes
    assert kind.is_text == (not kind.axes) == (not kind.endings)
    assert kind.reads.format(size="8 x 8", mode="grey", length=5).endswith(".")
    for stage in ("augment", "ingest/finders"):
        assert (ROOT / "stages" / stage / f"{name}.py").exists()


def test_the_kinds_are_the_files_with_a_kind():
    assert kinds.NAMES == ("images", "text", "translation", "volumes")
    for name in ("sounds", "base", "pictures", "", "..errors"):
        with pytest.raises(ConfigurationError, match=r"no kind of data .*Allowed: images, text, translation, volumes"):
            kinds.get(name)


def test_a_fifth_kind_is_one_file(tmp_path, monkeypatch):
    (tmp_path / "sounds.py").write_text(dedent(SOUNDS))
    (tmp_path / "waves.py").write_text("KINDS = ()\n")  # what it reads sounds with
    monkeypatch.setattr(base, "NAMES", (*kinds.NAMES, *base.find(tmp_path)))
    monkeypatch.setattr(kinds, "__path__", [*kinds.__path__, str(tmp_path)])
    try:
        assert base.NAMES[-1] == "sounds"
        assert base.decode_with("sounds", [b"la"], {}).arrays == {"sound": b"la"}
        kind = kinds.get("sounds")
        assert (kind.noun, kind.column, kind.metric, kind.truth) == ("sound", "sound", "accuracy", "label")
        assert list(kind.answers) == ["label", "probability", "probabilities"]
        assert kind.has_classes
        assert not kind.is_text
    finally:
        sys.modules.pop("convoy.kinds.sounds", None)


@pytest.mark.parametrize(
    ("name", "stored"),
    [
        ("images", np.arange(60, dtype=np.uint8).reshape(4, 5, 3)),
        ("images", np.arange(20, dtype=np.uint8).reshape(4, 5, 1)),
        ("volumes", np.arange(60, dtype=np.uint8).reshape(3, 4, 5, 1)),
    ],
)
def test_what_is_packed_is_prepared_to_the_same(name, stored):
    kind, mode = kinds.get(name), "grey" if stored.shape[-1] == 1 else "colour"
    takes = {"array": kind.column, "size": stored.shape[:-1], "mode": mode, "fit": "stretch"}
    np.testing.assert_array_equal(kind.prepare(kind.pack(stored), takes), stored)
    with pytest.raises(InputRefusedError, match="is str, not the bytes of a file"):
        kind.prepare("a text", takes)


@pytest.mark.parametrize("name", ["text", "translation"])
def test_a_text_is_prepared_as_ingest_stores_it(name):
    kind = kinds.get(name)
    assert kind.prepare(kind.pack("a  b\n"), {}) == "a b"
    with pytest.raises(InputRefusedError, match="is bytes, not a text"):
        kind.prepare(b"a", {})


def test_kinds_are_light():
    imported = set()
    for module in dependencies.of(["convoy.kinds"], neutral=True):
        for node in ast.parse((ROOT / dependencies.file(module)).read_text()).body:  # what an import runs
            names = [one.name for one in node.names] if isinstance(node, ast.Import) else []
            imported |= {*names, *([node.module] if isinstance(node, ast.ImportFrom) else [])}
    heavy = {"keras", "tensorflow", "pandas", "mlflow", "dvc", "scipy", "sklearn", "matplotlib", "pyarrow"}
    assert not heavy & {name.split(".")[0] for name in imported}


def compares(tree):
    """Tells whether a name of a kind is compared, or a table or list has two of them."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare):
            has_key = isinstance(node.ops[0], ast.In | ast.NotIn)  # "text" in input_spec asks for a key
            sides = node.comparators if has_key else [node.left, *node.comparators]
            if named(sides) or any(named(parts(one)) for one in node.comparators):
                return True
        elif len(named(node.keys if isinstance(node, ast.Dict) else parts(node))) > 1:
            return True
    return False


def parts(node):
    return node.elts if isinstance(node, ast.Tuple | ast.List | ast.Set) else []


def named(nodes):
    return [one.value for one in nodes if isinstance(one, ast.Constant) and one.value in kinds.NAMES]


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("kind == 'text'", True),
        ("kind in ('images', 'other')", True),
        ("{'images': 1, 'text': 2}", True),
        ("PREPARED = ('images', 'volumes')", True),
        ("'text' == kind", True),
        ("'text' in input_spec", False),
        ("test.column('text')", False),
        ("{'text': 1, 'label': 2}", False),
    ],
)
def test_a_comparison_of_kinds_is_found(code, found):
    assert compares(ast.parse(code)) == found


def test_nobody_compares_the_names_of_kinds():
    files = [path for package in ("convoy", "stages", "flows") for path in (ROOT / package).rglob("*.py")]
    own = {path for path in files if path.parent == ROOT / "convoy/kinds" or path.stem in kinds.NAMES}
    found = {
        path.relative_to(ROOT).as_posix() for path in files if path not in own and compares(ast.parse(path.read_text()))
    }
    assert found <= set(ALLOWED), "ask convoy.kinds, or move it to the stage's part of that kind"
