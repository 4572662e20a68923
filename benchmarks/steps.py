"""A training of each architecture beside plain Keras and PyTorch: examples/s and peak memory.

Usage: ``python benchmarks/steps.py --torch PYTHON``: an interpreter that has torch, Keras and numpy. torch is none of
the project's dependencies; without it its arms are left out. An hour on 2 cores, six minutes per model; ``--models
lenet5 --rounds 1 --seconds 1`` tries it. Only with nothing else running: torch's threads wait for each other, and at
low priority beside a busy process LeNet-5 took twenty times as long per step. Prints Markdown for RESULTS.md, model by
model, and each process's figures to stderr.

The networks are those of params.yaml, at the sizes of ``limits.py``, with the entry's batch, optimizer, learning rate,
weight decay, clipping and moving average; examples are random, texts all of one length, so that none is filled up. Each
arm of each round is a process of its own; a round has all arms of a model, and each begins with another one.

- convoy: ``fit.fit`` from shards, with what the rule of ``policy.py`` has for ``auto``; the second epoch, by what it
  reports.
  ``--policy '{"precision": "bfloat16"}'`` adds an arm with parts of it forced.
- without determinism: the same, and TensorFlow is not told to compute equal numbers.
- Keras: ``build``, ``compile`` and ``fit`` of arrays in memory, float32, all else Keras' default; its second epoch.
- torch: the module of ``translate.py``, eager, float32, in a loop over permuted rows of tensors in memory, all else the
  default of torch's optimizers; loss and accuracy are summed up as in the others; an epoch, after some steps. Its maps
  have their channels first or last, whichever was quicker in a short trial. Nothing is measured unless it has as many
  parameters as Keras' network and, with other than the first weights, the same answers within 1e-4.
- torch.compile: the network, its loss and accuracy compiled, if that takes no more than 120 s.

Peak memory is of the process: imports, the examples it holds, and of shards, which are mapped, the pages it read; of
torch.compile with the compiler only in the first round, after which what it made is read again.
"""

import argparse
import json
import math
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from convoy.data.vocabulary import BEGIN, END, SPECIAL
from convoy.machine import room

ARMS = {
    "convoy": "convoy",
    "forced": "convoy, forced",
    "free": "without determinism",
    "keras": "Keras",
    "torch": "torch",
    "compiled": "torch.compile",
}
RATIOS = ("keras", "torch", "compiled")  # what convoy is compared with
FOUND = "found: "  # begins the line in which a process says what it measured
FEW = 20  # batches of an epoch of the first estimate; steps by which torch warms up, and chooses a layout
COMPILING = 120  # seconds that torch.compile may take
LONGEST = 900  # seconds of one process
TOLERANCE = 1e-4  # between the answers of Keras and torch
CLASSES = 10
CHARACTERS = "abcdefghijklmnopqrstuvwxyz0123456789!\"#$%&'()*+,-./:;<=>?@[\\]^_{|}~"


@dataclass(frozen=True)
class Part:
    """What one process does.

    Attributes:
        arm: of ARMS; or ``translate``, which stores the network for torch.
        name: entry of params.yaml.
        network: its row of ``limits.NETWORKS``: architecture, arguments of ``build``, shape of an example.
        settings: an entry of train.
        policy: parts that are forced.
        examples: of an epoch.
        folder: where its shards and the translated network are.
        layout: of maps in torch: ``first`` or ``last``, where their channels are.
    """

    arm: str
    name: str
    network: tuple[str, dict[str, Any], list[int]]
    settings: dict[str, Any]
    policy: dict[str, Any]
    examples: int
    folder: str
    layout: str = "last"


def main() -> None:
    """Measures and prints, model by model."""
    from convoy import params
    from stages.check import prepare

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", help="some of those of limits.py; default: all")
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=ARMS, metavar="ARM",
                        help=f"beside convoy: {', '.join(ARMS)}")  # fmt: skip
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5, help="of the epoch that is measured, at convoy's speed")
    parser.add_argument("--torch", default=sys.executable, help="an interpreter that has torch; default: this one")
    parser.add_argument("--policy", type=json.loads, default={}, help="parts to force, as JSON: adds an arm")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.part:
        run(Part(**json.loads(arguments.part)))
        return
    from benchmarks.limits import NETWORKS

    listed = params.load(ROOT / "params.yaml")["train"]
    arms = [arm for arm in ARMS if arm == "convoy" or (arm in arguments.arms and (arm != "forced" or arguments.policy))]
    backend = os.environ | {"KERAS_BACKEND": "torch"}
    if subprocess.run([arguments.torch, "-c", "import torch, keras"], env=backend, capture_output=True).returncode:
        print(f"{arguments.torch} has no torch: its arms are left out\n")
        arms = [arm for arm in arms if arm not in ("torch", "compiled")]
    columns = ["model", "batch", *(ARMS[arm] for arm in arms), *(f"of {ARMS[arm]}" for arm in RATIOS if arm in arms)]
    print(f"Examples/s, median of {arguments.rounds}; {os.cpu_count()} cores\n")
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}", flush=True)
    peaks, notes = [], []
    for name in arguments.models or NETWORKS:
        settings = prepare("train", name, listed[name]).model_dump(mode="json")
        found, said = compared(name, NETWORKS[name], settings, arms, arguments)
        speeds = {arm: statistics.median(one["rate"] for one in found[arm]) for arm in arms if found[arm]}
        cells = [f"{speeds[arm]:,.0f}" if arm in speeds else "-" for arm in arms]
        cells += [f"{speeds['convoy'] / speeds[arm]:.2f}x" if arm in speeds else "-" for arm in RATIOS if arm in arms]
        print(f"| {name} | {settings['batch']} | {' | '.join(cells)} |", flush=True)
        most = (f"{statistics.median(one['memory'] for one in found[arm]):,.0f}" if found[arm] else "-" for arm in arms)
        peaks.append(f"| {name} | {' | '.join(most)} |")
        notes += [f"- {name}: {'; '.join(said)}."]
    print(f"\nPeak memory, MiB\n\n| model | {' | '.join(ARMS[arm] for arm in arms)} |\n|{'---|' * (len(arms) + 1)}")
    print("\n".join([*peaks, "", *notes]))


def compared(
    name: str, network: tuple[str, dict[str, Any], tuple[int, ...]], settings: dict[str, Any], arms: list[str],
    arguments: argparse.Namespace,
) -> tuple[dict[str, list[dict[str, Any]]], list[str]]:  # fmt: skip
    """Returns what each arm's processes measured, and what is to be said of it."""
    batch, found = settings["batch"], {arm: [] for arm in arms}
    with tempfile.TemporaryDirectory() as folder:
        part = Part("convoy", name, network, settings, {}, FEW * batch, folder)
        write(part)
        estimate = measured(part, arguments)
        if "failed" in estimate:
            raise SystemExit(f"{name}: {estimate['failed']}")
        steps = max(FEW, round(arguments.seconds * estimate["rate"] / batch))
        part = replace(part, examples=steps * batch)
        write(part)
        failed = {}
        if {"torch", "compiled"} & set(arms):
            made = measured(replace(part, arm="translate"), arguments)
            if "failed" in made:
                failed = dict.fromkeys(("torch", "compiled"), made["failed"])
            else:
                part = replace(part, layout=made["layout"])
        for number in range(arguments.rounds):
            for place in range(len(arms)):
                arm = arms[(place + number) % len(arms)]
                if arm in failed:
                    continue
                forced = arguments.policy if arm == "forced" else {}
                one = measured(replace(part, arm=arm, policy=forced), arguments)
                print(f"{name} {arm} {one}", file=sys.stderr, flush=True)
                if "failed" in one:
                    failed[arm] = one["failed"]
                else:
                    found[arm].append(one)
    if len(counts := {one["parameters"] for ones in found.values() for one in ones}) != 1:
        raise SystemExit(f"{name}: the arms trained networks of {counts} parameters")
    said = [f"{counts.pop():,} parameters", f"{steps} steps an epoch"]
    said += [f"{ARMS[arm]}: {ones[0]['note']}" for arm, ones in found.items() if ones and ones[0]["note"]]
    said += [f"{ARMS[arm]}: {why}" for arm, why in failed.items()]
    return found, said


def measured(part: Part, arguments: argparse.Namespace) -> dict[str, Any]:
    """Returns what a process measured: rate, memory, parameters, note; or why it failed."""
    torch = part.arm in ("translate", "torch", "compiled")
    words = [arguments.torch if torch else sys.executable, __file__, "--part", json.dumps(asdict(part))]
    environment = {"KERAS_BACKEND": "torch" if torch else "tensorflow", "TF_CPP_MIN_LOG_LEVEL": "3"}
    environment |= {"TORCHINDUCTOR_CACHE_DIR": f"{part.folder}/compiled"}  # one compilation for all rounds
    try:
        done = subprocess.run(
            words, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, timeout=LONGEST, check=False
        )
    except subprocess.TimeoutExpired:
        return {"failed": f"did not end in {LONGEST} s"}
    lines = [line.removeprefix(FOUND) for line in done.stdout.splitlines() if line.startswith(FOUND)]
    if not lines:
        return {"failed": (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]}
    return json.loads(lines[-1])


def run(part: Part) -> None:
    """Does one part in this process and says what it found."""
    work: dict[str, Callable[[Part], dict[str, Any]]] = {
        "convoy": convoy, "forced": convoy, "free": convoy, "keras": plain, "translate": translated, "torch": torched,
        "compiled": torched,
    }  # fmt: skip
    found = work[part.arm](part)
    print(FOUND + json.dumps(found | {"memory": room.peak() / 2**20}), flush=True)


def drawn(part: Part) -> tuple[list[np.ndarray], np.ndarray]:
    """Returns random inputs of the network, and the classes or the next tokens: what there is to learn."""
    rng, (architecture, given, shape), count = np.random.default_rng(0), part.network, part.examples
    if len(shape) > 1:
        return [rng.integers(0, 256, (count, *shape), np.uint8)], rng.integers(0, CLASSES, count)
    if architecture == "conv_seq2seq":
        source, after = (
            rng.integers(SPECIAL, given[f"{side}_words"], (count, *shape), np.int32) for side in ("source", "target")
        )
        before = np.roll(after, 1, axis=1)
        before[:, 0], after[:, -1] = BEGIN, END
        return [source, before], after
    return [rng.integers(SPECIAL, given["words"], (count, *shape), np.int32)], rng.integers(0, CLASSES, count)


def pieces(part: Part, words: int) -> list[str]:
    """Returns the pieces of a vocabulary of so many numbers."""
    if part.network[0] == "char_cnn":
        return list(CHARACTERS[: words - SPECIAL])
    return [f"w{number}" for number in range(words - SPECIAL)]


def write(part: Part) -> None:
    """Writes the examples, and a batch to validate with, as shards."""
    from convoy.data.shards import objects, write_shards

    inputs, wanted = drawn(part)
    architecture, given, shape = part.network

    def texts(tokens: np.ndarray, words: int) -> np.ndarray:
        known, space = pieces(part, words), "" if architecture == "char_cnn" else " "
        return objects(space.join(known[token - SPECIAL] for token in row) for row in tokens)

    if len(shape) > 1:
        block = {"image" if len(shape) == 3 else "volume": inputs[0], "label": wanted}
    elif architecture == "conv_seq2seq":
        source, target = texts(inputs[0], given["source_words"]), texts(wanted[:, :-1], given["target_words"])
        block = {"source": source, "target": target}
    else:
        block = {"text": texts(inputs[0], given["words"]), "label": wanted}
    for split, rows in (("train", part.examples), ("val", part.settings["batch"])):
        write_shards(Path(part.folder, f"{split}-{part.examples}"), [{key: one[:rows] for key, one in block.items()}])


def convoy(part: Part) -> dict[str, Any]:
    """Trains by ``fit.fit``."""
    import tensorflow as tf

    from convoy.data.shards import Shards
    from convoy.data.vocabulary import Vocabulary
    from stages.train.entry import Train
    from stages.train.fit import fit
    from stages.train.speed import policy

    if part.arm == "free":
        tf.config.experimental.enable_op_determinism = lambda: None
    architecture, given, shape = part.network
    takes = {"classes": list(range(CLASSES))}
    if len(shape) > 1:
        takes |= {"kind": "images", "array": "image"} if len(shape) == 3 else {"kind": "volumes", "array": "volume"}
    else:
        unit = "characters" if architecture == "char_cnn" else "words"
        columns = {key.removesuffix("words").strip("_") or "text": n for key, n in given.items() if "words" in key}
        takes |= {"kind": "text" if "text" in columns else "translation", "length": given.get("length", shape[0])}
        takes |= {column: Vocabulary(unit, pieces(part, words)).to_json() for column, words in columns.items()}
    data, val = (Shards(Path(part.folder, f"{split}-{part.examples}")) for split in ("train", "val"))
    entry = Train(**part.settings | {"epochs": 2} | dict.fromkeys(policy.PARTS, "auto"))
    rule, *_ = policy.choose_checked(part.name, part.name, data, takes, entry, worth=math.inf)
    chosen = replace(rule, **part.policy)
    reported = []  # examples/s after each epoch, of all steps but the first
    result = fit.fit(
        data,
        val,
        takes,
        entry,
        chosen,
        title=part.name,
        log=lambda row, _: reported.append(row["examples_per_second"]),
    )
    done = part.examples - entry.batch, 2 * part.examples - entry.batch
    first, both = (examples / rate for examples, rate in zip(done, reported, strict=True))
    note = "" if part.arm == "free" else policy.describe(chosen)
    rate = part.examples / (both - first)
    return {"rate": rate, "reported": result.examples_per_second, "parameters": result.parameters, "note": note}


def untrained(part: Part) -> tuple[Any, dict[str, float]]:
    """Returns the untrained Keras network, and the weight of each output's loss."""
    architecture, given, _ = part.network
    module = import_module(f"stages.train.architectures.{architecture}")
    weights = getattr(module, "LOSS_WEIGHTS", {"output": 1.0})
    heads = {"heads": True} if len(weights) > 1 else {}
    return module.build(**given, **heads, **part.settings["sizes"]), weights


def served(model: Any) -> int:
    """Returns the trainable parameters of a Keras network without auxiliary outputs."""
    import keras

    output = model.output["output"] if isinstance(model.output, dict) else model.output
    return sum(math.prod(one.shape) for one in keras.Model(model.input, output).trainable_weights)


def plain(part: Part) -> dict[str, Any]:
    """Trains as whoever has Keras and arrays would."""
    import keras

    class Clock(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
            self.seconds = -time.perf_counter()

        def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
            self.seconds += time.perf_counter()

    keras.utils.set_random_seed(0)
    model, weights = untrained(part)
    inputs, wanted = drawn(part)
    x = inputs if len(inputs) > 1 else inputs[0]
    if part.network[0] == "conv_seq2seq":
        loss, y = keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=0), wanted
    else:
        smoothing = part.settings["label_smoothing"]
        loss, y = keras.losses.CategoricalCrossentropy(label_smoothing=smoothing), keras.utils.to_categorical(wanted)
    asked = part.settings
    others = {"global_clipnorm": asked["clip_norm"], "use_ema": asked["ema"] > 0, "ema_momentum": asked["ema"]}
    if asked["optimizer"] == "sgd":
        others |= {"momentum": asked["momentum"], "nesterov": True}
    kind = {"adam": keras.optimizers.Adam, "adamw": keras.optimizers.AdamW, "sgd": keras.optimizers.SGD}
    decay = asked["weight_decay"] or None
    optimizer = kind[asked["optimizer"]](asked["learning_rate"], weight_decay=decay, **others)
    if len(weights) > 1:
        model.compile(optimizer, dict.fromkeys(weights, loss), loss_weights=weights, metrics={"output": ["accuracy"]})
        y = dict.fromkeys(weights, y)
    else:
        model.compile(optimizer, loss, metrics=["accuracy"])
    clock = Clock()
    model.fit(x, y, batch_size=asked["batch"], epochs=2, shuffle=True, verbose=0, callbacks=[clock])
    return {"rate": part.examples / clock.seconds, "parameters": served(model), "note": ""}


def translated(part: Part) -> dict[str, Any]:
    """Stores the network as a module of torch, if it has the answers of Keras', and finds its quicker layout."""
    import torch

    from benchmarks.translate import translate

    model, weights = untrained(part)
    rng = np.random.default_rng(0)
    before = model.get_weights()
    model.set_weights([one + rng.normal(0, 0.02, one.shape) for one in before])  # none is 0 or 1 in all places
    inputs = [torch.from_numpy(one[:4]) for one in drawn(replace(part, examples=4))[0]]
    net = translate(model)[0].eval()
    with torch.no_grad():
        right, found = model(inputs if len(inputs) > 1 else inputs[0], training=False), net(*inputs)
    if len(weights) == 1:
        right, found = {"output": right}, {"output": found}
    if part.network[0] != "conv_seq2seq":
        found = {key: one.softmax(-1) for key, one in found.items()}
    apart = max(float((right[key] - found[key]).abs().max()) for key in right)
    model.set_weights(before)
    net, bounded = translate(model)
    count, wanted = (sum(math.prod(w.shape) for w in some) for some in (net.parameters(), model.trainable_weights))
    if apart > TOLERANCE or count != wanted:
        return {"failed": f"answers differ by {apart:.1e} from Keras', parameters are {count:,} of {wanted:,}"}
    torch.save((net, bounded, weights, served(model)), Path(part.folder, "net.pt"))
    if len(part.network[2]) == 1:
        return {"layout": part.layout}
    short = replace(part, examples=FEW * part.settings["batch"])
    return {"layout": max(("last", "first"), key=lambda layout: torched(replace(short, layout=layout))["rate"])}


def torched(part: Part) -> dict[str, Any]:
    """Trains the stored module as whoever has torch and tensors would."""
    import torch
    from torch.nn.functional import cross_entropy

    torch.manual_seed(0)
    net, bounded, weights, parameters = torch.load(Path(part.folder, "net.pt"), weights_only=False)
    inputs, wanted = drawn(part)
    asked, maps, first = part.settings, len(part.network[2]) > 1, part.layout == "first"
    if maps and first:
        inputs = [np.ascontiguousarray(np.moveaxis(one, -1, 1)) for one in inputs]
    elif maps:
        net = net.to(memory_format={3: torch.channels_last, 4: torch.channels_last_3d}[len(part.network[2])])
    tensors, labels = [torch.from_numpy(one) for one in inputs], torch.from_numpy(wanted).long()
    filling = 0 if part.network[0] == "conv_seq2seq" else -100  # -100: none

    def objective(x: list[torch.Tensor], y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        found = net(*x)
        heads = found if len(weights) > 1 else {"output": found.flatten(0, -2)}
        loss = sum(
            weight * cross_entropy(heads[name], y, ignore_index=filling, label_smoothing=asked["label_smoothing"])
            for name, weight in weights.items()
        )
        return loss, (heads["output"].detach().argmax(1) == y).sum()

    if part.arm == "compiled":
        objective = torch.compile(objective)
    own = {"lr": asked["learning_rate"], "weight_decay": asked["weight_decay"]}
    if asked["optimizer"] == "sgd":
        own |= {"momentum": asked["momentum"], "nesterov": True}
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}[asked["optimizer"]]
    optimizer = kind(net.parameters(), **own)
    if asked["ema"]:
        average = torch.optim.swa_utils.get_ema_multi_avg_fn(asked["ema"])
        averaged = torch.optim.swa_utils.AveragedModel(net, multi_avg_fn=average)

    def train(rows: torch.Tensor) -> tuple[float, float]:
        """Trains on these examples; returns the sum of the losses and how many answers were right."""
        loss_sum, right_sum = torch.zeros(()), torch.zeros((), dtype=torch.int64)
        for chosen in rows.split(asked["batch"]):
            x = [one[chosen].movedim(1, -1) if maps and first else one[chosen] for one in tensors]
            optimizer.zero_grad()
            loss, right = objective(x, labels[chosen].flatten())
            loss.backward()
            if asked["clip_norm"]:
                torch.nn.utils.clip_grad_norm_(net.parameters(), asked["clip_norm"])
            optimizer.step()
            with torch.no_grad():
                for name, norm in bounded.items():
                    net.get_parameter(name).copy_(net.get_parameter(name).renorm(2, 0, norm))
            if asked["ema"]:
                averaged.update_parameters(net)
            loss_sum += loss.detach()
            right_sum += right
        return float(loss_sum), float(right_sum)

    net.train()
    note = {"first": "channels first", "last": "channels last"}[part.layout] if maps else ""
    if part.arm == "compiled":
        signal.signal(signal.SIGALRM, late)
        signal.alarm(COMPILING)
        began = time.perf_counter()
        train(torch.arange(asked["batch"]))
        signal.alarm(0)
        note = f"first step after {time.perf_counter() - began:.0f} s"
    train(torch.randperm(part.examples)[: FEW * asked["batch"]])
    began = time.perf_counter()
    train(torch.randperm(part.examples))
    return {"rate": part.examples / (time.perf_counter() - began), "parameters": parameters, "note": note}


def late(*_: object) -> None:
    """Ends a process that compiles for too long; the compiler would go on after an exception."""
    print(FOUND + json.dumps({"failed": f"no step after {COMPILING} s"}), flush=True)
    os._exit(1)


if __name__ == "__main__":
    main()
