import random
import subprocess
import sys

import keras
import numpy as np
import pytest
from conftest import ROOT

from convoy.errors import ConfigurationError
from convoy.model import backend as compute


def run(script):
    """Returns what a process of its own, with an untouched backend, says to stdout and stderr."""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout, done.stderr


@pytest.mark.parametrize(
    ("backend", "cpu", "compiled"),
    [
        ("tensorflow", True, False),
        ("tensorflow", False, True),
        ("jax", True, True),
        ("jax", False, True),
        ("torch", True, False),
        ("torch", False, False),
    ],
)
def test_only_jax_and_tensorflow_on_a_gpu_compile(monkeypatch, backend, cpu, compiled):
    monkeypatch.setattr(keras.backend, "backend", lambda: backend)
    monkeypatch.setattr(compute, "on_cpu", lambda: cpu)
    assert compute.compilation() is compiled


def test_this_machine_has_a_device():
    assert compute.devices()
    assert all(":" in device for device in compute.devices())


def test_a_cpu_has_no_memory_of_its_own_and_a_gpu_says_its_most(monkeypatch):
    import tensorflow as tf

    assert compute.peak_memory() is None
    monkeypatch.setattr(compute, "on_cpu", lambda: False)
    monkeypatch.setattr(tf.config.experimental, "get_memory_info", lambda device: {"current": 1, "peak": 7})
    assert compute.peak_memory() == 7


def test_a_gpu_of_tensorflow_is_not_taken_whole(monkeypatch):
    import tensorflow as tf

    grown = []
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: [f"{kind}:0", f"{kind}:1"])
    monkeypatch.setattr(tf.config.experimental, "set_memory_growth", lambda device, on: grown.append((device, on)))
    compute.prepare()
    assert grown == [("GPU:0", True), ("GPU:1", True)]


def test_more_devices_than_there_are_is_refused(monkeypatch):
    monkeypatch.setattr(keras.distribution, "list_devices", lambda: ["cpu:0", "gpu:0", "gpu:1"])
    with pytest.raises(ConfigurationError, match=r"devices = 3: there are 2: gpu:0, gpu:1\."), compute.distributed(3):
        pass


def test_a_backend_that_cannot_is_named(monkeypatch):
    monkeypatch.setattr(keras.backend, "backend", lambda: "torch")
    with pytest.raises(ConfigurationError, match="with the backend torch"), compute.distributed(2):
        pass
    with compute.distributed(1):
        pass


def test_the_gradient_is_that_of_the_textbook():
    at = np.array([[1.0, -2.0], [0.5, 3.0]], np.float32)
    found = compute.gradient(lambda x: keras.ops.sum(x**3) + keras.ops.sum(x[:, 0] * x[:, 1]), at)
    np.testing.assert_allclose(found, 3 * at**2 + at[:, ::-1], rtol=1e-6)


def test_precision_is_what_the_processor_multiplies(monkeypatch):
    assert [compute.precision(one) for one in ("float32", "bfloat16")] == ["float32", "bfloat16"]
    flags = {"fpu avx512_bf16": "bfloat16", "fpu amx_bf16": "bfloat16", "fpu avx2": "float32"}
    for text, expected in flags.items():
        monkeypatch.setattr(compute.Path, "read_text", lambda self, text=text: text)
        assert compute.precision("auto") == expected
    monkeypatch.setattr(compute.Path, "exists", lambda self: False)  # no Linux
    assert compute.precision("auto") == "float32"


@pytest.mark.parametrize(
    ("capability", "precision"), [((6, 1), "float32"), ((7, 0), "float16"), ((7, 5), "float16"), ((9, 0), "bfloat16")]
)
def test_precision_is_what_the_gpu_multiplies(monkeypatch, capability, precision):
    import tensorflow as tf

    details = {"device_name": "A", "compute_capability": capability}
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: [f"{kind}:0", f"{kind}:1"])
    monkeypatch.setattr(tf.config.experimental, "get_device_details", lambda device: details)
    assert compute.precision("auto") == precision
    assert compute.hardware() == "A, A"


def test_the_processor_is_named_with_its_cores(monkeypatch):
    monkeypatch.setattr(compute.Path, "read_text", lambda self: "processor\t: 0\nmodel name\t: Good One 7\n")
    monkeypatch.setattr(compute, "cores", lambda: 3)
    assert compute.hardware() == "Good One 7, 3 cores"


@pytest.mark.slow
def test_on_a_cpu_equal_steps_give_equal_numbers_and_threads_are_as_many_as_asked():
    script = (
        "from convoy.model import backend; backend.prepare(threads=1); import tensorflow as tf\n"
        "from tensorflow.python.framework import config\n"
        "print(config.is_op_determinism_enabled(), tf.config.threading.get_intra_op_parallelism_threads())"
    )
    assert run(script)[0].split() == ["True", "1"]


def test_jax_takes_no_threads_and_is_told_to_be_deterministic(monkeypatch):
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    monkeypatch.setitem(sys.modules, "jax", object())  # for these two nothing of it is asked
    monkeypatch.setenv("XLA_FLAGS", "--own")
    with pytest.raises(ConfigurationError, match="threads = 2: the backend jax"):
        compute.prepare(threads=2)
    compute.prepare(deterministic=True)
    compute.prepare(deterministic=True)
    assert compute.os.environ["XLA_FLAGS"] == "--own --xla_gpu_deterministic_ops=true"


def test_what_other_threads_draw_changes_no_weights():
    """Of the same process, as MLflow's clients and Prefect's server: Keras takes its seeds from Python's ``random``."""

    def weights(meanwhile):
        keras.utils.set_random_seed(0)
        with compute.seeds_from(0):
            first = keras.layers.Dense(3)
            meanwhile()
            model = keras.Sequential([keras.Input((2,)), first, keras.layers.Dense(3)])
        return model.get_weights()

    alone, beside = weights(lambda: None), weights(random.random)
    keras.utils.set_random_seed(0)
    stock = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3), keras.layers.Dense(3)]).get_weights()
    for one, other, keras_alone in zip(alone, beside, stock, strict=True):
        np.testing.assert_array_equal(one, other)
        np.testing.assert_array_equal(one, keras_alone)


@pytest.mark.slow
def test_keras_starts_quietly_and_without_what_is_not_used():
    script = (
        "import sys; from convoy.model import backend\n"
        "assert not {'sklearn', 'matplotlib'} & set(sys.modules)\n"
        "import sklearn.metrics, matplotlib.pyplot"
    )
    assert run(script) == ("", "")


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
@pytest.mark.parametrize("shape", [(6, 5, 4, 3), (6, 3, 5, 4, 3)])
def test_fused_normalisation_is_that_of_keras_but_for_rounding(shape, policy):
    rng = np.random.default_rng(0)
    x, y = rng.normal(3, 2, shape).astype("float32"), rng.normal(0, 1, (shape[0], 1)).astype("float32")

    def trained():
        keras.utils.set_random_seed(0)
        image = keras.Input(shape[1:])
        hidden = keras.layers.Conv2D(4, 1)(image) if len(shape) == 4 else keras.layers.Conv3D(4, 1)(image)
        hidden = keras.layers.BatchNormalization(momentum=0.7, dtype=policy)(hidden)
        pool = keras.layers.GlobalMaxPooling2D if len(shape) == 4 else keras.layers.GlobalMaxPooling3D
        model = keras.Model(image, keras.layers.Dense(1)(pool()(hidden)))
        model.compile("sgd", "mse")
        losses = [model.train_on_batch(x, y) for _ in range(3)]
        return [*model.get_weights(), np.array(losses), model.predict(x, verbose=0)]

    stock = trained()
    with compute.fused_normalisation():
        fused = trained()
    assert any((a != b).any() for a, b in zip(stock, fused, strict=True))  # it was another operation
    tolerance = 1e-5 if policy == "float32" else 3e-2
    for one, other in zip(stock, fused, strict=True):
        np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance)
    again = trained()
    for one, other in zip(stock, again, strict=True):
        np.testing.assert_array_equal(one, other)
