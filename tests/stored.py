"""Versions in the registry whose files need no training: they are stored and checked as those of a network are."""

import json

import pandas as pd

from convoy.tracking import registry, runs


def register(folder, dataset="d", content="weights", tags=None):
    """Stores and registers a version of ``dataset`` in the store that is in use; returns it.

    Args:
        folder: an empty one, for what is stored.
        dataset: the registered model.
        content: of its file ``weights.txt``.
        tags: beside those of every version that register makes; "{}" has none of them either.
    """
    files, code = folder / "model", folder / "code"
    files.mkdir()
    code.mkdir()
    (files / "weights.txt").write_text(content)
    (files / "lineage.json").write_text(json.dumps({"content": content}))
    (code / "__init__.py").write_text("def _load_pyfunc(folder):\n    raise SystemExit(folder)\n")
    with runs.run("train@m", dataset, {}, {}) as run_id:
        address = registry.log_model(
            "m",
            files,
            "code",
            [code],
            {"text": "string"},
            {"label": "string"},
            pd.DataFrame({"text": ["x"]}),
            ["numpy"],
        )
    with registry.fetched(address) as copy:
        own = {"model": "m", "model_sha256": content, "kind": "text", registry.STORED: registry.fingerprint(copy)}
    return registry.add_version(dataset, address, run_id, own | (tags or {}))
