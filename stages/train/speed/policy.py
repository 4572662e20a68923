"""How a training computes: precision, compilation, steps per execution and threads.

What an entry leaves open follows from a rule; or from a measurement on the network, its data and the device, which is
remembered. It is made where a training is long enough to be worth it, in processes of their own: what goes wrong there
is not the training's, and each begins with an untouched backend.
"""

import hashlib
import json
import math
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import keras
from filelock import FileLock

from convoy.data.shards import Shards
from convoy.errors import ConfigurationError
from convoy.files import read_json, write_json
from convoy.model import backend
from stages.train.entry import Policy, Train
from stages.train.fit import export, network
from stages.train.speed import cost, gradients
from stages.train.speed.rates import FLOPS_PER_STEP, RATES

CACHE = Path("data/train/.cache/policies.json")
# Beside what an entry says of the policy, the data and the device: what the speed of a step follows from.
DECIDES = (
    "architecture", "sizes", "batch", "optimizer", "ema", "clip_norm", "augmentation", "devices", "deterministic",
)  # fmt: skip
GAIN = 1.08  # by which a change has to shorten the training; less may be luck
STEPS, LOOK = 16, 0.25  # per execution, where there are several; and seconds after which to look again
WORTH = 600.0  # expected seconds of a training from which it is measured
SECONDS, FEWEST, MOST = 4.0, 16, 400  # steps that are measured: those of so many seconds, within these bounds
GPU = 2e12  # operations per second of one, for that; a guess, at which only trainings that are really long are measured
LONGEST = 120.0  # seconds that one measurement may take; what is not compiled by then is not chosen

PACE = "pace: "  # begins the line in which a process that measures says what it found
PARTS = tuple(field.name for field in fields(Policy))


@dataclass(frozen=True)
class Tried:
    """What was measured of one policy.

    Attributes:
        policy: that was tried.
        start: seconds before its steps have their speed: building and compiling.
        step: seconds of one step; None if there was none.
        failed: why.
    """

    policy: Policy
    start: float = 0.0
    step: float | None = None
    failed: str = ""

    def seconds(self, steps: int) -> float:
        """Returns the length of a training of so many steps."""
        return math.inf if self.step is None else self.start + steps * self.step

    def __str__(self) -> str:
        said = f"{1000 * self.step:,.3g} ms a step after {self.start:.0f} s" if self.step else self.failed
        return f"{describe(self.policy)}: {said}"


def describe(policy: Policy) -> str:
    """Returns a policy in words, e.g. ``float32, compiled, 16 steps per execution, 4 threads``."""
    steps, threads = policy.steps_per_execution, policy.threads
    return ", ".join(
        [
            policy.precision,
            "compiled" if policy.jit_compile else "not compiled",
            f"{steps} step{'s' * (steps > 1)} per execution",
            f"{threads} thread{'s' * (threads > 1)}" if threads else "a thread per core",
        ]
    )


def rule(entry: Train, step: float) -> Policy:
    """Returns the policy where nothing was measured: for ``auto`` what was best for most networks.

    Several steps per execution spare Python's part of each, a tenth of a step of ten milliseconds; so many that one
    still sees what happens. With JAX they are compiled one behind the other, which takes longer than they do.

    Args:
        entry: of train.
        step: expected seconds of one.
    """
    several = keras.backend.backend() == "tensorflow"
    usual = {
        "precision": backend.precision("auto"),
        "jit_compile": backend.compilation(),
        "steps_per_execution": max(1, min(STEPS, int(LOOK / step))) if several else 1,
        "threads": None,
    }
    return Policy(**usual | {part: getattr(entry, part) for part in PARTS if getattr(entry, part) != "auto"})


def choose(
    name: str, data: Shards, input_spec: dict[str, Any], entry: Train, worth: float = WORTH, again: bool = False
) -> tuple[Policy, str]:
    """Returns the policy of a training, and where it is from: ``entry``, ``rule`` or ``measured``.

    What was measured once holds for all later trainings of an equal network, batch, data and device, however short.

    Args:
        name: of the model in params.yaml, for the processes that measure.
        data: training examples.
        input_spec: the content of the model's input.json.
        entry: of train.
        worth: expected seconds of the training from which it is measured.
        again: measure even if it is remembered.
    """
    if "auto" not in [getattr(entry, part) for part in PARTS]:
        return Policy(**{part: getattr(entry, part) for part in PARTS}), "entry"
    backend.prepare(entry.devices)  # the questions below start JAX, after which it is too late
    place = key(data, input_spec, entry)
    if not again and (known := _remembered().get(place)):
        return Policy(**known["policy"]), "measured"
    each = math.ceil(len(data) / entry.batch)
    steps, step = entry.epochs * each, expected(data, input_spec, entry) / each
    policy, most = rule(entry, step), min(MOST, steps - 2 * STEPS)  # one execution goes before, one may go beyond
    if most < FEWEST and again:
        print(f"train@{name}  has {steps} steps, too few to measure")
    if steps * step < worth or most < FEWEST:
        return policy, "rule"
    count = min(most, max(FEWEST, round(SECONDS / step)))
    CACHE.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(CACHE.with_suffix(".lock")):  # two that measure at once would measure each other
        if not again and (known := _remembered().get(place)):  # by whom this one waited for
            return Policy(**known["policy"]), "measured"
        print(f"train@{name}  measuring the fastest settings on this machine (cached in {CACHE})", flush=True)
        best, tried = search(policy, entry, steps, each, lambda one: _measured(name, one, count))
        if best.step is None:
            return policy, "rule"
        _remember(place, {"model": name, "policy": asdict(best.policy), "tried": [asdict(one) for one in tried]})
    return best.policy, "measured"


def choose_checked(
    name: str, title: str, data: Shards, input_spec: dict[str, Any], entry: Train, worth: float = WORTH
) -> tuple[Policy, str, cost.Cost]:
    """Returns what ``choose`` does, with a precision whose gradients are right, and what the training then costs.

    On a CPU; those of GPUs are what everybody trains with.

    Args:
        name: of the model in params.yaml.
        title: what messages call the training.
        data: training examples.
        input_spec: the content of the model's input.json.
        entry: of train.
        worth: expected seconds of the training from which it is measured.

    Raises:
        ConfigurationError: the entry asks for a precision in which this machine computes wrong gradients; or, like
            ServiceError, from ``cost.check``.
    """
    policy, source = choose(name, data, input_spec, entry, worth)
    # Which also sets threads, before anything is computed.
    needs = cost.check(data, input_spec, entry, policy, title)
    if policy.precision == "float32" or not backend.on_cpu():
        return policy, source, needs
    layers = gradients.wrong(data, input_spec, entry, policy.precision)
    if not layers:
        return policy, source, needs
    said = f"in {policy.precision} this machine computes wrong gradients of {', '.join(layers)}"
    if entry.precision != "auto":
        raise ConfigurationError(f"train.{name}: {said}. Right ones have precision: float32, or auto.")
    print(f"{title}  {said}: float32 is taken", flush=True)
    policy = replace(policy, precision="float32")
    return policy, source, cost.check(data, input_spec, entry, policy, title)


def search(
    first: Policy, entry: Train, steps: int, each: int, measure: Callable[[Policy], Tried]
) -> tuple[Tried, list[Tried]]:
    """Returns the best policy that was found by changing one part after the other, and all that were tried.

    Args:
        first: where to begin.
        entry: its parts that are ``auto`` here may change.
        steps: of the whole training.
        each: steps of an epoch.
        measure: tries a policy.
    """
    best = measure(first)
    tried = [best]
    for part, values in _alternatives(first, entry, each):
        for value in values:
            one = measure(replace(best.policy, **{part: value}))
            tried.append(one)
            if one.seconds(steps) * GAIN > best.seconds(steps):
                break
            best = one
    return best, tried


def _alternatives(first: Policy, entry: Train, each: int) -> Iterator[tuple[str, list[Any]]]:
    """Yields the parts of a policy that may change, with the values to try: each has to better the one before."""
    if entry.precision == "auto" and first.precision != "float32":
        yield "precision", ["float32"]  # what has no instructions is emulated, and not worth a try
    if entry.jit_compile == "auto" and keras.backend.backend() != "jax":  # which takes minutes for it without
        yield "jit_compile", [not first.jit_compile]
    if entry.threads == "auto" and backend.on_cpu() and keras.backend.backend() != "jax":
        cores = backend.cores()
        yield "threads", [cores // 2**power for power in range(1, cores.bit_length())]
    if entry.steps_per_execution == "auto" and each >= 4 * STEPS:
        yield "steps_per_execution", [1 if first.steps_per_execution > 1 else STEPS]


def expected(data: Shards, input_spec: dict[str, Any], entry: Train) -> float:
    """Returns the seconds that an epoch may take, counted from its operations."""
    found = cost.estimate(data, input_spec, entry, entry.precision)
    return FLOPS_PER_STEP * found.flops * found.examples / (RATES["cpu"] if backend.on_cpu() else GPU)


def key(data: Shards, input_spec: dict[str, Any], entry: Train) -> str:
    """Returns what tells apart trainings whose best policies may differ."""
    decides = {part: getattr(entry, part) for part in (*DECIDES, *PARTS)}
    decides["given"] = network.data_arguments(entry.architecture, data, input_spec)
    decides["on"] = (backend.hardware(), export.libraries())
    return hashlib.sha256(json.dumps(decides, sort_keys=True, default=str).encode()).hexdigest()


def _measured(name: str, policy: Policy, steps: int) -> Tried:
    """Measures a policy in a process of its own, and says what it found."""
    command = [sys.executable, "-m", "stages", "pace", name, json.dumps({"steps": steps, **asdict(policy)})]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LONGEST, check=False)
        lines = [line.removeprefix(PACE) for line in done.stdout.splitlines() if line.startswith(PACE)]
        if lines:
            one = Tried(policy, **json.loads(lines[-1]))
        else:
            one = Tried(policy, failed=(done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1])
    except subprocess.TimeoutExpired:
        one = Tried(policy, failed=f"had no {steps} steps after {LONGEST:.0f} s")
    print(f"train@{name}  {one}", flush=True)
    return one


def _remembered() -> dict[str, Any]:
    return read_json(CACHE) if CACHE.exists() else {}


def _remember(place: str, entry: dict[str, Any]) -> None:
    known = _remembered() | {place: entry | {"measured": datetime.now(UTC).isoformat(timespec="seconds")}}
    write_json(CACHE, known, indent=1)
