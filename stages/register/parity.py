"""Loads a stored model and asks it; ``register`` runs this file in a fresh process, without our code on its path.

``asked.parquet`` -> ``answered.parquet`` and ``seconds.npy``, in the working directory.
"""

import gc
import sys
import time

import mlflow
import numpy as np
import pandas as pd

SINGLE = 50  # examples that are also asked one by one, as a server is


def main(folder: str) -> None:
    """Answers all rows together, then some one by one."""
    model, asked = mlflow.pyfunc.load_model(folder), pd.read_parquet("asked.parquet")
    answered = model.predict(asked)
    answered[answered.columns[:2]].to_parquet("answered.parquet")  # label or translation, probability
    seconds = []
    for row in range(min(SINGLE, len(asked)) + 1):
        started = time.perf_counter()
        model.predict(asked.iloc[[row % len(asked)]])
        seconds.append(time.perf_counter() - started)
    np.save("seconds.npy", seconds[1:])  # the first compiles


if __name__ == "__main__":
    gc.set_threshold(50_000, 20, 50)  # for the reason in stages/__main__.py
    main(sys.argv[1])
    gc.freeze()
