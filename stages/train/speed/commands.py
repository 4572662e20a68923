"""What is asked of a training beside its model: what it would cost, how it computes fastest, how fast it is."""

import json
import math
from dataclasses import asdict
from typing import Any

from convoy.model import backend
from stages.train.entry import Train
from stages.train.fit.input_spec import open_inputs
from stages.train.speed import cost, policy
from stages.train.speed.pace import measure_pace


def plan(model: str, entry: Train) -> dict[str, Any]:
    """Returns what a training would cost - ``cost.Cost``, in bytes - with its epochs and its device.

    Args:
        model: name of the entry in params.yaml.
        entry: the entry.

    Raises:
        InputRefusedError: the data is not there yet.
        ConfigurationError: the entry does not fit the data.
    """
    data, _, input_spec = open_inputs(model, entry, verify=False)
    backend.prepare()
    chosen, _ = policy.choose(model, data, input_spec, entry, worth=math.inf)
    found = cost.estimate(data, input_spec, entry, chosen.precision)
    others = {"architecture": entry.architecture, "epochs": entry.epochs}
    return asdict(found) | others | {"memory": found.memory, "device": backend.devices()[0]}


def measure(model: str, entry: Train) -> None:
    """Measures how a training computes fastest, which every later one then does: see ``policy.py``."""
    data, _, input_spec = open_inputs(model, entry)
    chosen, source = policy.choose(model, data, input_spec, entry, worth=0.0, again=True)
    print(f"train@{model}  will compute in {policy.describe(chosen)} ({source})")


def pace(model: str, entry: Train, steps: int, chosen: dict[str, Any]) -> None:
    """Says in a line of PACE and JSON how fast a training is with a policy: ``policy.Tried``'s start and step.

    Args:
        model: name of the entry in params.yaml.
        entry: the entry.
        steps: that are measured.
        chosen: the policy, as a mapping.
    """
    data, val, input_spec = open_inputs(model, entry)
    settled, title = entry.model_copy(update=chosen), f"pace@{model}"
    computing, _, needs = policy.choose_checked(model, title, data, input_spec, settled)
    with cost.guarded(needs, title):
        start, step = measure_pace(steps, data, val, input_spec, settled, computing, title=title)
    print(policy.PACE + json.dumps({"start": start, "step": step}), flush=True)
