"""Trains one model: data/augment/<dataset> and data/ingest/<dataset>/val -> data/train/<dataset>/<model>.

This file imports no Keras, so that the schema of ``train`` can be read without seconds of start-up.
"""

import ast
import inspect
import json
import math
import shutil
import time
from contextlib import suppress
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np

from convoy import dependencies
from convoy.checksums import sha256
from convoy.data.shards import INDEX, Shards, read_sealed
from convoy.data.vocabulary import Unit, Vocabulary
from convoy.errors import ConfigurationError
from convoy.machine import room
from convoy.params import Above, Amount, Part, Positive, Seed, Share
from convoy.tracking import outbox

ARCHITECTURES = Path(__file__).parent / "architectures"
ARRAYS = {"images": "image", "volumes": "volume"}  # kind -> array of the shards
READING = ("tokens", "vocabulary", "min_count", "case", "length")  # arguments that say how texts are read
ROW = "trial: "  # begins what a trial says of an epoch
PACE = "pace: "  # begins what is said of the speed of a step
STEP = 3  # forward passes that a training step is worth: back takes twice as long as forth
# Operations per second of a training where nothing like it ever ran: the middle of what the models of params.yaml reach
# on 2 cores (benchmarks/RESULTS.md). There is none for other devices.
RATES = {"cpu": 4e10}
LONGEST = 4096  # tokens that are read of a text where an entry does not say; bounds memory
# Arguments of ``build`` that are no sizes: they follow from the data or from the training.
FOLLOWS = ("input_shape", "classes", "heads", "words", "source_words", "target_words", "length")


def train(
    model: str,
    *,
    dataset: str,
    architecture: str,
    epochs: Positive,
    learning_rate: Amount,
    sizes: dict[str, Any] = {},  # noqa: B006 - read only; the signature is the schema of params.yaml
    batch: Positive = 128,
    optimizer: Literal["sgd", "adam", "adamw"] = "adam",
    momentum: Share = 0.9,
    weight_decay: Amount = 0.0,
    clip_norm: Above | None = None,
    ema: Part = 0.0,
    schedule: Literal["constant", "step", "cosine"] = "cosine",
    warmup: Amount = 0.0,
    milestones: list[Share] = [0.5, 0.75],  # noqa: B006
    label_smoothing: Share = 0.0,
    class_weights: bool = False,
    patience: Positive | None = None,
    augmentation: dict[Literal["shift", "rotate", "scale", "flip", "noise"], Amount] = {},  # noqa: B006
    devices: Positive = 1,
    deterministic: bool = False,
    precision: Literal["float32", "bfloat16", "float16", "auto"] = "float32",
    jit_compile: bool | Literal["auto"] = "auto",
    steps_per_execution: Positive | Literal["auto"] = "auto",
    threads: Positive | Literal["auto"] = "auto",
    tokens: Unit = "words",
    vocabulary: Positive | None = None,
    min_count: Positive = 1,
    case: bool = False,
    length: Positive | None = None,
    word_vectors: Path | None = None,
    seed: Seed = 0,
) -> None:
    """Trains ``architecture`` on the augmented training split; writes data/train/<dataset>/<model>.

    ``model.keras`` (no optimizer; loads without our code), ``input.json`` (what it takes: how a picture comes to its
    size, a text to tokens; what its answers mean), ``history.csv`` (per epoch), and ``run.json`` (the MLflow run, its
    size, how it computed). On a CPU equal entries, data, code, policy (``policy.py``) and machine give equal files,
    also after a kill. What it took, which differs each time, is in ``record.measured``. What an entry does not say, its
    architecture's ``PRESET`` does, then the defaults here.

    Args:
        model: name of the entry in params.yaml.
        dataset: an entry of ingest.
        architecture: a file of ``architectures/``.
        epochs: passes over the augmented training split.
        learning_rate: the largest of the schedule, per step.
        sizes: arguments of the architecture's ``build``, without those that follow from the data.
        batch: examples per step.
        optimizer: sgd has ``momentum`` (Nesterov's), adam and adamw have their papers' constants.
        momentum: of sgd.
        weight_decay: share of each kernel taken off per step, times the learning rate; biases, normalisation and
            embeddings are exempt (Loshchilov and Hutter 2017, arXiv:1711.05101).
        clip_norm: largest l2 norm of all gradients of a step together (Pascanu et al. 2013, arXiv:1211.5063).
        ema: the model keeps a moving average of its weights, of which each step replaces 1 - ema; 0: the last weights
            (Polyak and Juditsky 1992). The first steps replace more: step t, from 0, replaces 9 / (10 + t). Validation
            sees the average. Statistics of batch normalisation have an average of their own.
        schedule: ``constant``; ``step`` divides by 10 at ``milestones``; ``cosine`` falls to 0 at the end.
        warmup: epochs over which the rate of the cosine schedule first rises from 0.
        milestones: shares of the whole training, for ``step``.
        label_smoothing: share of the target probability that is spread over all classes.
        class_weights: weigh every class equally, however many examples it has.
        patience: stop after so many epochs without a lower validation loss, and keep the best weights; by default
            train to the end and keep the last.
        augmentation: of pictures, anew in every epoch, beside the copies of ``augment``: ``shift`` in pixels,
            ``rotate`` in degrees, ``scale`` as a share, ``flip``, the share that is mirrored, ``noise`` in grey levels.
        devices: that the model is trained on, each with its share of every batch.
        deterministic: equal trainings give equal models on a GPU too, where that is slower; on a CPU they do.
        precision: of what layers compute in training; weights, and the model that is stored, are float32. auto:
            bfloat16, or else float16, where the device has instructions for it and they are faster.
        jit_compile: by XLA, or torch.compile. This and the next two, like an ``auto`` precision, follow from a rule or,
            before a long training, from a measurement; see ``policy.py``.
        steps_per_execution: that the device takes before Python looks again.
        threads: of the CPU that one operation is divided into.
        tokens: what texts are divided into: words, characters or subwords; see ``vocabulary.py``.
        vocabulary: the most frequent words or characters that are known; by default all of the training split.
        min_count: how often a word or character has to occur there.
        case: words and characters keep it: "The" is another word than "the". Subwords and translations always do.
        length: tokens of a text that are read; by default as many as the longest of the training split has, and at
            most LONGEST.
        word_vectors: file of vectors that the words begin with; DVC does not watch it.
        seed: of the first weights, the order of examples and dropout.

    Raises:
        ConfigurationError: the architecture does not exist, is for another kind of data or refuses its sizes; a key
            says nothing about this data; there are not so many devices; or not so much memory, in all.
        ServiceError: others have the memory that it needs, or it ended.
        DivergedError: the loss is no longer a finite number.
    """
    arguments = {key: value for key, value in locals().items() if key not in ("model", "dataset")}
    target = Path("data/train", dataset, model)
    data, val, takes = opened(model, dataset, arguments)
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)

    read = {str(path): sha256(path) for path in (data.folder / INDEX, val.folder / INDEX)} | code(architecture)
    if word_vectors is not None and word_vectors.is_file():
        read["word_vectors"] = sha256(word_vectors)
    from convoy.model import backend  # here, since `check` has no use for Keras' seconds of start-up
    from stages.train.fit import fit
    from stages.train.running.checkpoints import Checkpoints
    from stages.train.speed import cost, policy

    title, settings = f"train@{model}", fitting(arguments)
    depends = {"dataset": dataset, "arguments": arguments, "read": read, "libraries": fit.libraries()}
    checkpoints = Checkpoints(dataset, model, depends | {"model": model})
    state = checkpoints.newest()
    former = state.facts if state else {"seconds": 0.0}
    if state:
        print(f"resuming {title} from epoch {state.epochs + 1}", flush=True)
    with outbox.run(checkpoints.key, title, dataset, arguments, read, anew=state is None) as run:
        for context, split in (("training", data), ("validation", val)):
            run.data(context, dataset, split.folder, read[str(split.folder / INDEX)])
        started = time.time() - former["seconds"]
        # What was chosen when the training began computes the rest of it too.
        chosen, source, spent = policy.settle(model, title, data, takes, settings | former.get("policy", {}))
        source = former.get("source", source)
        settings |= chosen
        print(f"{title}  {spent}\n{title}  computes in {policy.told(chosen)} ({source})", flush=True)
        kept = {"policy": chosen, "source": source}
        checkpoints.facts = lambda: kept | {"seconds": time.time() - started}
        with cost.guarded(spent, title):
            result = fit.fit(
                data, val, takes, title=title, log=run.metrics, checkpoints=checkpoints, state=state, **settings
            )
            seconds = time.time() - started
            fit.save(result.model, target / "model.keras")
        result.history.to_csv(target / "history.csv", index=False)
        (target / "input.json").write_text(json.dumps(takes, ensure_ascii=False), encoding="utf-8")
        facts = {
            "model": model,
            "dataset": dataset,
            "architecture": architecture,
            "record_id": run.id,
            "parameters": result.parameters,
            "flops": spent.flops,
            "epochs": len(result.history),
            **chosen,
            "policy": source,
            **fit.environment(),
        }
        measured = {
            "examples_per_second": round(result.examples_per_second),
            "validation_examples_per_second": round(result.validation_examples_per_second),
            "memory": round(room.peak() / 2**20),  # MiB
            **({"device_memory": round(most / 2**20)} if (most := backend.peak_memory()) else {}),  # MiB of a GPU
            "seconds": round(seconds, 1),
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        run.facts(facts | measured)
    outbox.keep(facts, measured)
    (target / "run.json").write_text(json.dumps(facts, indent=1))
    checkpoints.remove()


def planned(model: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """Returns what a training would cost - of ``cost.Cost``, in bytes - with its epochs and its device.

    Args:
        model: name of the entry in params.yaml.
        arguments: the others of ``train``.

    Raises:
        InputRefusedError: the data is not there yet.
        ConfigurationError: as of ``train``.
    """
    data, _, takes = opened(model, arguments["dataset"], arguments, verify=False)
    from convoy.model import backend  # here, for the reason in the first lines
    from stages.train.speed import cost, policy

    backend.prepare()
    settings = fitting(arguments)
    settings |= policy.choose(model, data, takes, settings, worth=math.inf)[0]
    found = cost.estimate(data, takes, **settings)
    others = {key: arguments[key] for key in ("architecture", "epochs")}
    return asdict(found) | others | {"memory": found.memory, "device": backend.devices()[0]}


def trial(model: str, *, dataset: str, **arguments: Any) -> None:
    """Trains as ``train`` does with these arguments, and keeps nothing but what it says: lines of ROW and JSON.

    One for each epoch has a row of the history and the speed; the last one the number of ``parameters``, and as
    ``kept`` the epoch whose weights ``train`` would keep.
    """
    data, val, takes = opened(model, dataset, arguments)
    from stages.train.fit import fit
    from stages.train.speed import cost, policy  # as in train

    def say(row: dict[str, float], _epoch: int = 0) -> None:
        print(ROW + json.dumps(row), flush=True)

    settings, title = fitting(arguments), f"trial@{model}"
    chosen, _, spent = policy.settle(model, title, data, takes, settings, worth=math.inf)
    settings |= chosen
    with cost.guarded(spent, title):
        result = fit.fit(data, val, takes, title=title, log=say, **settings)
    losses = result.history["val_loss"]
    kept = len(losses) if arguments["patience"] is None else int(losses.argmin()) + 1
    say({"kept": kept, "parameters": result.parameters})


def measure(model: str, *, dataset: str, **arguments: Any) -> None:
    """Measures how a training computes fastest, which every later one then does: see ``policy.py``."""
    data, _, takes = opened(model, dataset, arguments)
    from stages.train.speed import policy  # as in train

    chosen, source = policy.choose(model, data, takes, fitting(arguments), worth=0.0, anew=True)
    print(f"train@{model}  will compute in {policy.told(chosen)} ({source})")


def pace(model: str, steps: int, chosen: dict[str, Any], *, dataset: str, **arguments: Any) -> None:
    """Says in a line of PACE and JSON how fast a training is with a policy: ``policy.Tried``'s start and step.

    Args:
        model: name of the entry in params.yaml.
        steps: that are measured.
        chosen: the policy.
        dataset: as of ``train``.
        arguments: likewise.
    """
    data, val, takes = opened(model, dataset, arguments)
    from stages.train.fit import fit
    from stages.train.speed import cost, policy  # as in train

    settings, title = fitting(arguments) | chosen, f"pace@{model}"
    _, _, spent = policy.settle(model, title, data, takes, settings)
    with cost.guarded(spent, title):
        start, step = fit.pace(steps, data=data, val=val, takes=takes, title=title, **settings)
    print(PACE + json.dumps({"start": start, "step": step}), flush=True)


def opened(
    model: str, dataset: str, arguments: dict[str, Any], verify: bool = True
) -> tuple[Shards, Shards, dict[str, Any]]:
    """Returns the training and validation examples, and what a model takes of them, as of ``inputs``.

    Raises:
        ConfigurationError: as of ``train``.
    """
    where = f"params.yaml, train.{model}"
    check_sizes(where, arguments["architecture"], arguments["sizes"])
    about = read_sealed(Path("data/augment", dataset, "about.json"))
    check_kind(where, arguments["architecture"], dataset, about["kind"])
    check_keys(where, about["kind"], arguments)
    places = (Path("data/augment", dataset, "train"), Path("data/ingest", dataset, "val"))
    data, val = (Shards(place, verify=verify) for place in places)
    return data, val, inputs(about, data, where=where, **{key: arguments[key] for key in READING})


def fitting(arguments: dict[str, Any]) -> dict[str, Any]:
    """Returns the arguments of ``train`` that ``loop.fit`` has too: all but those of how texts are read."""
    return {key: value for key, value in arguments.items() if key not in READING}


def code(architecture: str) -> dict[str, str]:
    """Returns the files of this checkout that decide what a training yields: path -> SHA-256."""
    return dependencies.checksums(dependencies.stage("train", architecture))


def inputs(
    about: dict[str, Any],
    data: Shards,
    *,
    where: str,
    tokens: Unit,
    vocabulary: int | None,
    min_count: int,
    case: bool,
    length: int | None,
) -> dict[str, Any]:
    """Returns what a model of this data set takes, for input.json; all that brings a raw example to it.

    ``kind``; of pictures and volumes ``array`` and how they were prepared (size, mode, fit); of texts their vocabulary
    ``text``, of pairs those of ``source`` and ``target``, and ``length`` in tokens; ``classes``, if there are any.
    """
    kind = about["kind"]
    takes = {"kind": kind, "classes": about["classes"]}
    if kind in ARRAYS:
        return takes | {"array": ARRAYS[kind], **about["options"]}
    columns = about["vocabulary"]
    if kind == "translation" and tokens == "words":
        print("words of a translation are joined by spaces; subwords give a text back as it is written")
    case = case or kind == "translation"  # what is learned to be written is compared with what people wrote
    chosen = {
        column: Vocabulary.chosen(stored, tokens, vocabulary, min_count, case, where)
        for column, stored in columns.items()
    }
    lengths = np.concatenate([known.encode(data.texts(column)).lengths for column, known in chosen.items()])
    length = length or min(int(lengths.max()), LONGEST)
    if cut := int((lengths > length).sum()):
        print(f"length = {length} {tokens}: {cut:,} of {len(lengths):,} training texts are longer and are cut off")
    return takes | {"length": length} | {column: known.to_json() for column, known in chosen.items()}


def preset(architecture: object) -> dict[str, Any]:
    """Returns the arguments of ``train`` that an architecture's file proposes, without importing it."""
    return _constant(architecture, "PRESET", {}) if architecture in _architectures() else {}


def check_kind(where: str, architecture: str, dataset: str, kind: str) -> None:
    """Raises ConfigurationError where an architecture is for other data."""
    takes = _constant(architecture, "KIND", "images")
    if takes != kind:
        fitting = [name for name in _architectures() if _constant(name, "KIND", "images") == kind]
        raise ConfigurationError(
            f"{where}: {architecture} takes {takes}, and {dataset} has {kind}. For these: {', '.join(fitting)}."
        )


def check_keys(where: str, kind: str, arguments: dict[str, Any]) -> None:
    """Raises ConfigurationError where a key of the entry has no effect on this kind of data, or no meaning."""
    unset = {name: parameter.default for name, parameter in inspect.signature(train).parameters.items()}
    unset |= preset(arguments["architecture"])
    tokens, idle = arguments["tokens"], {}
    if kind in ARRAYS:
        idle |= dict.fromkeys(READING, f"{kind} are not divided into tokens")
    elif tokens == "subwords":
        idle |= dict.fromkeys(("vocabulary", "min_count", "case"), "augment learns the subwords, and they have case")
    for name, share in arguments["augmentation"].items():
        if (name == "scale" and share >= 1) or (name == "flip" and share > 1):
            raise ConfigurationError(
                f"{where}, augmentation: {name} = {share} is a share: below 1, or of flip up to 1."
            )
    if kind != "images":
        idle["augmentation"] = "it is of pictures"
    if (kind, tokens) != ("text", "words"):
        idle["word_vectors"] = "they are for texts, divided into words"
    if kind == "translation":
        idle |= {"class_weights": "sentences have no classes", "case": "a translation keeps it"}
    for key, why in idle.items():
        if arguments[key] != unset[key]:
            raise ConfigurationError(f"{where}: {key} = {arguments[key]} would have no effect: {why}.")


def check_sizes(where: str, architecture: str, sizes: dict[str, Any]) -> None:
    """Compares ``sizes`` with the signature of the architecture's ``build``, without importing it.

    Raises:
        ConfigurationError: there is no such file, or ``build`` has no such argument.
    """
    names = _architectures()
    if architecture not in names:
        raise ConfigurationError(f"{where}: unknown architecture {architecture!r}. Architectures: {', '.join(names)}.")
    file = ARCHITECTURES / f"{architecture}.py"
    try:
        tree = _tree(architecture)
    except SyntaxError as error:
        raise ConfigurationError(f"{where}: {file}, line {error.lineno}: {error.msg}") from error
    build = next((node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "build"), None)
    if build is None:
        raise ConfigurationError(f"{where}: {file} has no function build(input_shape, classes, ...).")
    allowed = [a.arg for a in build.args.args if a.arg not in FOLLOWS]
    if unknown := sorted(set(sizes) - set(allowed)):
        raise ConfigurationError(
            f"{where}: {architecture} has no size {', '.join(unknown)}. Sizes: {', '.join(allowed)}."
        )


def default_sizes(architecture: str) -> dict[str, Any]:
    """Returns what an architecture's ``build`` has for the sizes where nothing is said, without importing it.

    Those that have no default, or one that is computed, are left out.
    """
    [build] = [node for node in _tree(architecture).body if getattr(node, "name", "") == "build"]
    names, defaults = [argument.arg for argument in build.args.args], build.args.defaults
    found = {}
    for name, default in zip(names[len(names) - len(defaults) :], defaults, strict=True):
        if name not in FOLLOWS:
            with suppress(ValueError):
                found[name] = ast.literal_eval(default)
    return found


def _architectures() -> list[str]:
    return sorted(path.stem for path in ARCHITECTURES.glob("[!_]*.py"))


def _tree(architecture: str) -> ast.Module:
    return ast.parse((ARCHITECTURES / f"{architecture}.py").read_text())


def _constant(architecture: str, name: str, default: Any) -> Any:
    """Returns the literal that an architecture's file gives to ``name``; it may not be Python, which others report."""
    try:
        body = _tree(architecture).body
    except SyntaxError:
        return default
    for node in body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id == name:
            return ast.literal_eval(node.value)
    return default
