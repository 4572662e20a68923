"""The training loop on Keras' other backends: whatever trains there is, for all that follows, a model of TensorFlow."""

import importlib.util
import json
import os
import subprocess
import sys

import keras
import numpy as np
import pytest
from conftest import ROOT

from convoy.data.shards import Shards, objects, write_shards
from convoy.data.vocabulary import Vocabulary

# In a process of its own, as the backend is chosen at import. The answers lie beside the model.
TRAINING = """
import json, sys
from pathlib import Path
import numpy as np
from convoy.data.shards import Shards
from convoy.model import backend
from stages.train.entry import Policy, Train
from stages.train.fit import export, fit
input_spec, entry = json.loads(sys.argv[1])
entry, policy = Train(**entry), Policy("float32", backend.compilation(), 1, None)
result = fit.fit(Shards("a"), Shards("b"), input_spec, entry, policy, title="t", log=lambda *_: None)
export.save(result.model, Path("model.keras"))
np.save("answers.npy", result.model.predict(np.load("examples.npy"), verbose=0))
print(json.dumps({"history": result.history.to_dict("list"), **export.environment()}))
"""
# Three words say one class, three the other.
WORDS = ["good", "fine", "great", "bad", "awful", "poor", "so", "the", "a", "film"]
ENTRY = {
    "dataset": "a", "epochs": 3, "batch": 32, "learning_rate": 0.01, "weight_decay": 1e-3, "clip_norm": 1.0, "ema": 0.5,
    "label_smoothing": 0.1, "class_weights": True, "patience": 3,
}  # fmt: skip


def pictures(rng, count):
    """Noise with a bright band, which is the class: high, in the middle or low."""
    labels = rng.integers(0, 3, count)
    images = rng.integers(0, 60, (count, 16, 16, 1), np.uint8)
    images[np.arange(16) // 6 == labels[:, None]] += 150
    return {"image": images, "label": labels}


def texts(rng, count):
    labels = rng.integers(0, 2, count)
    made = []
    for label in labels:
        words = [*rng.choice(WORDS[6:], rng.integers(2, 7)), WORDS[3 * label + rng.integers(3)]]
        made.append(" ".join(rng.permutation(words)))
    return {"text": objects(made), "label": labels}


KINDS = {  # architecture: its sizes, its data, what it takes
    "resnet": (
        {"stem": "cifar", "depth": 8, "width": 0.25},
        pictures,
        {"kind": "images", "array": "image", "classes": ["high", "middle", "low"]},
    ),
    "text_cnn": (
        {"embedding": 16, "maps": 16},
        texts,
        {"kind": "text", "text": Vocabulary("words", sorted(WORDS)).to_json(), "length": 8, "classes": ["+", "-"]},
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("architecture", KINDS)
@pytest.mark.parametrize("backend", ["tensorflow", "jax", "torch"])
def test_every_backend_trains_a_model_that_tensorflow_loads_with_equal_answers(workspace, backend, architecture):
    if importlib.util.find_spec(backend) is None:
        pytest.skip(f"{backend} is not installed")
    sizes, make, takes = KINDS[architecture]
    rng = np.random.default_rng(0)
    for name, count in (("a", 320), ("b", 50)):
        write_shards(workspace / name, [make(rng, count)])
    val = Shards(workspace / "b")
    if architecture == "resnet":
        examples = val[:]["image"]
    else:
        rows = Vocabulary.from_json(takes["text"]).encode(val.column("text"), takes["length"])
        examples = np.array([np.pad(rows[row], (0, 8 - len(rows[row]))) for row in range(len(rows))])
    np.save("examples.npy", examples)
    entry = ENTRY | {"architecture": architecture, "sizes": sizes}
    environment = os.environ | {"PYTHONPATH": str(ROOT), "KERAS_BACKEND": backend}
    command = [sys.executable, "-c", TRAINING, json.dumps([takes, entry])]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["backend"] == backend
    losses = said["history"]["loss"]
    assert losses[-1] < 0.8 * losses[0]
    assert said["history"]["val_accuracy"][-1] > 0.9

    assert keras.backend.backend() == "tensorflow"
    model = keras.saving.load_model("model.keras")
    answers = model.predict(examples, verbose=0)
    np.testing.assert_allclose(answers, np.load("answers.npy"), atol=1e-5)
    assert np.mean(answers.argmax(axis=1) == val.column("label")) == pytest.approx(said["history"]["val_accuracy"][-1])
