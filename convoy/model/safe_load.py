"""Loads networks in Keras' file format, .keras, and nothing in them that could run code or read other files.

A shared registry may hold other people's networks. Keras' own ``safe_mode`` forbids lambdas, but it was bypassed again
and again. So a file must hold the three members that Keras writes and nothing else. Its configuration may name only the
classes that are listed here: stock layers without code, vocabularies or files of their own, and operations that take no
function. A process of its own loads the file first, because a listed layer may still want too much memory. That process
has little memory and time, may write no file, and does not know the environment.
"""

import io
import json
import os
import re
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convoy import CODE
from convoy.errors import InputRefusedError

if TYPE_CHECKING:
    import keras

MEMBERS = {"metadata.json", "config.json", "model.weights.h5"}
LAYERS = {
    "Activation", "ActivityRegularization", "Add", "AdditiveAttention", "AlphaDropout", "Attention", "Average",
    "AveragePooling1D", "AveragePooling2D", "AveragePooling3D", "BatchNormalization", "Bidirectional",
    "Concatenate", "Conv1D", "Conv1DTranspose", "Conv2D", "Conv2DTranspose", "Conv3D", "Conv3DTranspose",
    "ConvLSTM1D", "ConvLSTM2D", "ConvLSTM3D", "Cropping1D", "Cropping2D", "Cropping3D", "Dense",
    "DepthwiseConv1D", "DepthwiseConv2D", "Dot", "Dropout", "ELU", "EinsumDense", "Embedding", "Flatten", "GRU",
    "GRUCell", "GaussianDropout", "GaussianNoise", "GlobalAveragePooling1D", "GlobalAveragePooling2D",
    "GlobalAveragePooling3D", "GlobalMaxPooling1D", "GlobalMaxPooling2D", "GlobalMaxPooling3D",
    "GroupNormalization", "GroupQueryAttention", "Identity", "InputLayer", "LSTM", "LSTMCell",
    "LayerNormalization", "LeakyReLU", "Masking", "MaxPooling1D", "MaxPooling2D", "MaxPooling3D", "Maximum",
    "Minimum", "MultiHeadAttention", "Multiply", "Normalization", "PReLU", "Permute", "RMSNormalization", "RNN",
    "ReLU", "RepeatVector", "Rescaling", "Reshape", "Resizing", "SeparableConv1D", "SeparableConv2D", "SimpleRNN",
    "SimpleRNNCell", "Softmax", "SpatialDropout1D", "SpatialDropout2D", "SpatialDropout3D",
    "SpectralNormalization", "StackedRNNCells", "Subtract", "TimeDistributed", "UnitNormalization",
    "UpSampling1D", "UpSampling2D", "UpSampling3D", "ZeroPadding1D", "ZeroPadding2D", "ZeroPadding3D",
}  # fmt: skip
WITH_FUNCTIONS = {  # operations
    "AssociativeScan", "Cond", "CustomGradient", "ForiLoop", "Map", "Scan", "Switch", "VectorizedMap", "WhileLoop",
}  # fmt: skip
VALUES = {"__keras_tensor__", "__slice__", "__ellipsis__", "__tensor__"}  # that are no objects of a module
OTHERS = {
    "keras": {"DTypePolicy"},
    "keras.src.models.functional": {"Functional"},
    "keras.src.models.sequential": {"Sequential"},
}
ANY = re.compile(r"keras\.(initializers|regularizers|constraints)")
OPERATIONS = re.compile(r"keras\.src\.ops\.(core|image|linalg|math|nn|numpy)")
RATIO, SPARE = 20, 2**20  # times, and bytes, that what is packed may be larger than its file
# Of the process that loads it first: bytes beyond what Keras takes and RATIO times the file, and seconds.
ROOM, CPU_SECONDS, SECONDS = 2**30, 120, 600
KNOWN = ("HOME", "KERAS_BACKEND", "KERAS_HOME", "LANG", "LD_LIBRARY_PATH", "PATH", "TMPDIR", "VIRTUAL_ENV")  # variables


def load(path: Path) -> "keras.Model":
    """Loads a network that was looked at, and loaded by another process before.

    Raises:
        InputRefusedError: as for ``check``; or it cannot be loaded within those limits.
    """
    import keras

    check(path)
    try_elsewhere(path)
    return keras.saving.load_model(path, compile=False)


def try_elsewhere(path: Path) -> None:
    """Has a process of its own load a network: a few seconds.

    Raises:
        InputRefusedError: it cannot, or not within its limits.
    """
    environment = {name: os.environ[name] for name in KNOWN if name in os.environ}
    environment |= {"PYTHONPATH": str(CODE), "PYTHONDONTWRITEBYTECODE": "1"}
    environment |= {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "", "JAX_PLATFORMS": "cpu"}
    try:
        done = subprocess.run(
            [sys.executable, "-m", "convoy.model.safe_load", path.resolve()], env=environment, stdin=subprocess.DEVNULL,
            capture_output=True, text=True, errors="replace", timeout=SECONDS, check=False,
        )  # fmt: skip
        errors = re.findall(r"^[\w.]*Error: .*", done.stderr, re.MULTILINE)
        why = (errors or [f"it ended with status {done.returncode}"])[-1] if done.returncode else ""
    except subprocess.TimeoutExpired:
        why = f"not done after {SECONDS} s"
    if why:
        raise InputRefusedError(
            f"{path} was not loaded by a process with {_room(path) / 2**30:.1f} GiB for it and {CPU_SECONDS} s: "
            f"{why[:500]}"
        )


def _room(path: Path) -> int:
    return ROOM + RATIO * path.stat().st_size


def _load_within_limits(path: Path) -> None:
    """Loads a network in this process, which is of no other use then."""
    import resource  # none on Windows

    import keras
    import psutil

    keras.Model(inputs := keras.Input((1,)), keras.layers.Dense(1)(inputs))  # what starts with the first layer
    wanted = {resource.RLIMIT_CPU: int(sum(os.times()[:2])) + CPU_SECONDS, resource.RLIMIT_FSIZE: 0}
    wanted[resource.RLIMIT_CORE] = 0
    if sys.platform == "linux":  # elsewhere it does not count what is mapped
        wanted[resource.RLIMIT_DATA] = psutil.Process().memory_info().data + _room(path)
    for kind, most in wanted.items():
        resource.setrlimit(kind, (most, most))
    keras.saving.load_model(path, compile=False)


def check(path: Path) -> None:
    """Looks at a file of a network without loading anything of it.

    Raises:
        InputRefusedError: it is no .keras file, is larger than it says, holds something else than a network's three
            members, weights that lie elsewhere, or names something that is not listed here.
    """
    if not zipfile.is_zipfile(path):
        raise InputRefusedError(f"{path} is no .keras file, which is the only format of networks that is read.")
    try:
        with zipfile.ZipFile(path) as archive:
            names = [entry.filename for entry in archive.infolist()]
            if set(names) != MEMBERS or len(names) != len(MEMBERS):
                allowed = ", ".join(sorted(MEMBERS))
                raise InputRefusedError(f"{path} holds {', '.join(sorted(names)[:9])}; allowed: {allowed}.")
            size = sum(entry.file_size for entry in archive.infolist())
            if size > RATIO * path.stat().st_size + SPARE:
                raise InputRefusedError(f"{path} would be {size:,} bytes unpacked, of {path.stat().st_size:,}.")
            config = json.loads(archive.read("config.json"))
            weights = io.BytesIO(archive.read("model.weights.h5"))
    # What zipfile raises of damaged and encrypted members, of places outside of the file and unknown compressions.
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, OSError, RuntimeError, ValueError) as error:
        raise InputRefusedError(f"{path} is damaged: {error}") from error
    for found in _objects(config):
        if (said := _refused(found)) is not None:
            raise InputRefusedError(f"{path} names {said}; networks of stock layers without code are allowed.")
    _check_weights(path, weights)


def _objects(value: Any) -> Iterator[dict[str, Any]]:
    """Yields every part of a configuration that Keras would make an object of; not recursively, as it may be deep."""
    waiting = [value]
    while waiting:
        one = waiting.pop()
        if isinstance(one, dict):
            if "class_name" in one or "module" in one or "registered_name" in one:
                yield one
            waiting += one.values()
        elif isinstance(one, list):
            waiting += one


def _refused(found: dict[str, Any]) -> str | None:
    """Returns what a part of a configuration names, if that is not allowed."""
    module, name, registered = (found.get(key) for key in ("module", "class_name", "registered_name"))
    said = f"{module}.{name}"[:200]
    if not isinstance(name, str) or not name.isidentifier() or registered not in (None, name):
        return said if registered in (None, name) else f"{said}, registered as {str(registered)[:100]}"
    if module is None:
        return None if name in VALUES else said
    if not isinstance(module, str):
        return said
    if module == "keras.layers":
        return None if name in LAYERS else said
    if OPERATIONS.fullmatch(module):
        return said if name in WITH_FUNCTIONS else None
    return None if ANY.fullmatch(module) or name in OTHERS.get(module, ()) else said


def _check_weights(path: Path, content: io.BytesIO) -> None:
    """Looks whether all weights lie in the file itself, and are about as large as it."""
    import h5py  # which Keras needs too

    most, size = RATIO * len(content.getbuffer()) + SPARE, 0
    try:
        with h5py.File(content, "r") as file:
            waiting: list[Any] = [file]
            while waiting:
                group = waiting.pop()
                for name in group:
                    link = group.get(name, getlink=True)
                    if not isinstance(link, h5py.HardLink):
                        raise InputRefusedError(f"{path}: the weights {name} are a link to {link.path}.")
                    one = group[name]
                    if isinstance(one, h5py.Group):
                        waiting.append(one)
                        continue
                    if one.external or one.is_virtual:
                        raise InputRefusedError(f"{path}: the weights {one.name} lie in another file.")
                    size += one.nbytes
                    if size > most:
                        raise InputRefusedError(f"{path}: its weights would be {size:,} bytes or more.")
    except (OSError, KeyError, RuntimeError) as error:
        raise InputRefusedError(f"{path}: its weights are damaged: {error}") from error


if __name__ == "__main__":
    _load_within_limits(Path(sys.argv[1]))
