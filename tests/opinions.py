"""Raw sentences, pairs and volumes that small models learn in seconds."""

import json

import numpy as np
import pandas as pd
import pytest

GOOD, BAD = ("good", "great", "lovely", "fine"), ("bad", "awful", "dull", "poor")
FILLERS = ("the", "film", "was", "a", "story", "about", "some", "people", "who", "went", "home", "early")
DIGITS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
FRENCH = ["nul", "un", "deux", "trois", "quatre", "cinq", "six", "sept", "huit", "neuf"]
COMMON = {"fetch": {}, "ingest": {}, "augment": {}, "register": {}}


@pytest.fixture
def raw(workspace):
    """data/raw with the data sets opinions, counts and blocks; params.yaml with the names of their models."""
    rng = np.random.default_rng(0)
    rows = []
    for number in range(240):
        words = list(rng.choice(FILLERS, rng.integers(4, 12)))
        label = ("good", "bad")[number % 2]
        words.insert(rng.integers(len(words) + 1), str(rng.choice(GOOD if label == "good" else BAD)))
        rows.append((f"{' '.join(words)} {number}", label))
    (workspace / "data/raw/opinions").mkdir(parents=True)
    pd.DataFrame(rows, columns=["text", "label"]).to_csv(workspace / "data/raw/opinions/o.csv", index=False)
    pairs = [(f"{DIGITS[n // 100]} {DIGITS[n // 10 % 10]} {DIGITS[n % 10]}",
              f"{FRENCH[n // 100]} {FRENCH[n // 10 % 10]} {FRENCH[n % 10]}") for n in range(1000)]  # fmt: skip
    (workspace / "data/raw/counts").mkdir()
    pd.DataFrame(pairs, columns=["source", "target"]).to_csv(workspace / "data/raw/counts/c.csv", index=False)
    for number in range(60):
        label = ("flat", "tall")[number % 2]
        volume = rng.integers(0, 60, (6, 6, 6)).astype(np.uint8)
        place = int(rng.integers(1, 5))
        volume[(place, slice(None), slice(None)) if label == "flat" else (slice(None), place, place)] = 250
        folder = workspace / "data/raw/blocks" / label
        folder.mkdir(parents=True, exist_ok=True)
        np.save(folder / f"{number:02d}.npy", volume)
    models = {"words": "opinions", "counter": "counts", "shapes": "blocks"}
    entries = COMMON | {"train": {model: {"dataset": dataset} for model, dataset in models.items()}}
    (workspace / "params.yaml").write_text(json.dumps(entries))
    return workspace
