"""Networks of stock layers are loaded; whatever else a .keras file may hold is refused before anything of it is."""

import io
import json
import subprocess
import sys
import zipfile
from contextlib import suppress

import h5py
import keras
import numpy as np
import pytest
from keras import ops
from networks import SMALL, build, example

from convoy.errors import InputRefusedError
from convoy.machine import room
from convoy.model import safe_load
from stages.train.fit import export


@pytest.fixture
def plain(tmp_path):
    """A file of a small network."""
    inputs = keras.Input((4,))
    hidden = keras.layers.Dense(3, "relu", kernel_constraint=keras.constraints.MaxNorm(3))(inputs)
    keras.Model(inputs, ops.softmax(hidden * 2)).save(tmp_path / "plain.keras")
    return tmp_path / "plain.keras"


def changed(path, config=None, weights=None, more=None):
    """Rewrites a file with other members."""
    with zipfile.ZipFile(path) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    if config is not None:
        found = json.loads(content["config.json"])
        content["config.json"] = json.dumps(config(found) or found).encode()
    if weights is not None:
        content["model.weights.h5"] = weights
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in (content | (more or {})).items():
            archive.writestr(name, data)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_what_the_architectures_build_is_loaded(name, tmp_path, monkeypatch):
    model = build(name, **example(name, 1, 1)[0])
    export.save(model, tmp_path / "model.keras")
    monkeypatch.setattr(safe_load, "try_elsewhere", lambda path: None)  # seconds for each
    assert safe_load.load(tmp_path / "model.keras").count_params() == model.count_params()


@pytest.mark.slow
def test_a_network_is_loaded_elsewhere_first(plain):
    assert safe_load.load(plain).count_params() == 15


@pytest.mark.slow
@pytest.mark.parametrize(
    ("layer", "said"),
    [
        ({"units": 10**10}, "OOM when allocating"),
        ({"units": 5}, "ValueError: A total of 1 objects could not be loaded"),
        ({"activation": "nonsense"}, "could not be deserialized"),
    ],
)
def test_fault_38_what_only_loading_shows_is_refused_and_this_process_unharmed(plain, layer, said):
    def other(config):
        config["config"]["layers"][1]["config"].update(layer)

    before = room.peak()
    with pytest.raises(
        InputRefusedError, match=rf"was not loaded by a process with 1.0 GiB for it and 120 s: .*({said})"
    ):
        safe_load.load(changed(plain, other))
    assert room.peak() - before < 2**28


@pytest.mark.slow
def test_fault_38_the_process_that_loads_first_knows_no_secret_and_writes_nothing(plain, monkeypatch, tmp_path):
    monkeypatch.setenv("A_TOKEN", "canary")
    asked = {}

    def run(command, env, **options):
        asked.update(env)
        program = "import sys\nfrom pathlib import Path\nfrom convoy.model import safe_load\n"
        program += "safe_load._load_within_limits(Path(sys.argv[1]))\nPath(sys.argv[2]).write_text('a')\n"
        return real([sys.executable, "-c", program, *command[3:], str(tmp_path / "written")], env=env, **options)

    real = subprocess.run
    monkeypatch.setattr(safe_load.subprocess, "run", run)
    with pytest.raises(InputRefusedError, match="File too large"):
        safe_load.try_elsewhere(plain)
    assert "A_TOKEN" not in asked
    assert (tmp_path / "written").read_bytes() == b""


def layer(**values):
    return lambda config: config["config"]["layers"].append(
        {"name": "x", "registered_name": None, "config": {}, "inbound_nodes": []} | values
    )


@pytest.mark.parametrize(
    ("config", "named"),
    [
        (layer(module="keras.layers", class_name="Lambda"), "keras.layers.Lambda"),
        (layer(module="keras.layers", class_name="TFSMLayer"), "keras.layers.TFSMLayer"),
        (layer(module="keras.layers", class_name="TextVectorization"), "keras.layers.TextVectorization"),
        (layer(module="os", class_name="system"), "os.system"),
        (layer(module="builtins", class_name="function", config="eval"), "builtins.function"),
        (layer(module="keras.src.ops.core", class_name="Map"), "keras.src.ops.core.Map"),
        (layer(module="keras.utils", class_name="get_file"), "keras.utils.get_file"),
        (layer(module="keras.layers", class_name="Dense", registered_name="evil>Dense"), "registered as evil>Dense"),
        (layer(module=None, class_name="__lambda__"), "None.__lambda__"),
        (layer(module=["os"], class_name="system"), "system"),
        (layer(module="keras.initializers", class_name="a.b"), "keras.initializers.a.b"),
        (layer(module="keras.layers", class_name="Dense", config={"activation": {"module": "os", "class_name": "system",
               "config": {}}}), "os.system"),
        (lambda config: {"module": "keras.src.models.functional", "class_name": "Other"}, "functional.Other"),
    ],
)  # fmt: skip
def test_fault_38_what_is_not_listed_is_named_and_refused(plain, config, named, monkeypatch):
    monkeypatch.setattr(keras.saving, "load_model", None)  # nothing is loaded
    with pytest.raises(InputRefusedError, match="networks of stock layers without code are allowed") as error:
        safe_load.load(changed(plain, config))
    assert named in str(error.value)


def hdf5(write):
    content = io.BytesIO()
    with h5py.File(content, "w") as file:
        write(file)
    return content.getvalue()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("write", "said"),
    [
        (lambda file: file.__setitem__("a", h5py.ExternalLink("/etc/passwd", "/x")), "the weights a are a link to /x"),
        (lambda file: file.__setitem__("a", h5py.SoftLink("/b")), "the weights a are a link to /b"),
        (lambda file: file.create_dataset("a", (4,), "u1", external=[("/etc/passwd", 0, 4)]), "lie in another file"),
        (lambda file: file.create_dataset("a", (2**40,), "f4", chunks=(2**20,)), "its weights would be 4,398,"),
        (lambda file: file.create_dataset("a/b", data=np.zeros(2**26), compression="gzip"), "its weights would be"),
    ],
)
def test_fault_38_weights_elsewhere_or_larger_than_their_file_are_refused(plain, write, said):
    with pytest.raises(InputRefusedError, match=said):
        safe_load.check(changed(plain, weights=hdf5(write)))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"more": {"assets/vocabulary.txt": b"x"}}, "holds assets/vocabulary.txt, .*; allowed: config.json, "),
        ({"more": {"../outside": b"x"}}, r"holds \.\./outside"),
        ({"weights": bytes(2**26)}, "would be 67,1.* bytes unpacked"),
        ({"weights": b"no hdf5"}, "its weights are damaged"),
        ({"more": {"config.json": b"{"}}, "is damaged"),
        ({"more": {"config.json": b"[" * 200_000}}, "is damaged"),
    ],
)
def test_fault_38_other_members_bombs_and_damage_are_refused(plain, change, said):
    with pytest.raises(InputRefusedError, match=said):
        safe_load.check(changed(plain, **change))


def test_fault_38_other_formats_are_refused(tmp_path):
    (tmp_path / "model.h5").write_bytes(hdf5(lambda file: file.create_dataset("a", data=[1])))
    (tmp_path / "model.pkl").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    for path in (tmp_path / "model.h5", tmp_path / "model.pkl"):
        with pytest.raises(InputRefusedError, match=r"is no \.keras file"):
            safe_load.load(path)


@pytest.mark.slow
def test_no_flipped_byte_leaves_a_traceback(plain):
    content = bytearray(plain.read_bytes())
    for place in range(0, len(content), 7):
        content[place] ^= 0xFF
        plain.write_bytes(content)
        with suppress(InputRefusedError):
            safe_load.check(plain)
        content[place] ^= 0xFF
