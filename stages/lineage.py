"""Where a registered model comes from, and the way back.

``convoy trace digits@champion`` prints the chain from raw files to the decision, ``rebuild`` trains the model
once more from what was recorded and compares, ``rollback digits@2 --reason ...`` makes an earlier version
champion, and ``clean`` removes what no version that stays needs. ``register`` stores what DVC recorded of the chain
beside the model (``lineage.json``), so none of it depends on which commits of dvc.lock were kept.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Container, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.tree import Tree

from convoy import params
from convoy.checksums import sha256
from convoy.errors import ConfigurationError, IntegrityError, ServiceError, StageError
from convoy.model.scores import with_interval
from convoy.repo.collect import collect
from convoy.repo.objects import open_cache
from convoy.repo.restore import check_out, restore
from convoy.tracking import outbox, registry, retention

LINEAGE = "lineage.json"
CHAIN = {"fetch": "raw files", "ingest": "shards", "augment": "augmentation", "train": "training",
         "evaluate": "evaluation"}  # fmt: skip


def trace(name: str) -> None:
    """Prints where a version comes from: raw files, shards, augmentation, training, evaluation, decision.

    Args:
        name: data set and version or alias: ``digits@champion``, ``digits@3``.
    """
    found = registry.find_version(*_parted(name))
    recorded, run, tags = _recorded(found), registry.run_of(found), found.tags
    stages = {stage.split("@")[0]: entry for stage, entry in recorded["lock"]["stages"].items()}
    aliases = f" ({', '.join(found.aliases)})" if found.aliases else ""
    tree = Tree(f"{found.name} version {found.version}{aliases}: {tags['model']}")
    with open_cache() as is_cached:
        for stage, title in CHAIN.items():
            entry = stages.get(stage, {"outs": []})
            branch = tree.add(f"{title}  {recorded['names'][stage]}")
            for out in entry["outs"]:
                branch.add(_out(out, is_cached(out["md5"])))
            for path, text in recorded["files"].items() if stage == "fetch" else ():
                branch.add(f"{path}: {' '.join(text.split())}")
            for key, value in entry.get("params", {}).get("params.yaml", {}).items():
                branch.add(f"{key} = {json.dumps(value)}")
            if stage == "train":
                for line in _training(run, tags):
                    branch.add(line)
            if stage == "evaluate":
                metric = tags["evaluation.metric"]
                numbers = {key: float(tags[f"evaluation.{key}"]) for key in (metric, f"{metric}_low", f"{metric}_high")}
                value, low, high = with_interval(numbers | {"metric": metric})
                branch.add(f"{metric} {value}, 95 % interval {low} to {high}; test split {tags['test_sha256'][:12]}")
    decision = tree.add("decision")
    decision.add(json.loads(tags.get("decision", '"none"')))
    if "rolled_back" in tags:
        decision.add(f"taken back: {tags['rolled_back']}")
    width = None if Console().is_terminal else 1000  # elsewhere a line is a line
    Console(width=width, highlight=False, markup=False).print(tree)


def rebuild(name: str) -> None:
    """Trains a version once more, in a scratch folder, from the commit and the data it came from; compares the model.

    Args:
        name: see ``trace``.

    Raises:
        ConfigurationError: its commit or its data are nowhere to be found.
        IntegrityError: the model has other bytes; the message names libraries that differ.
    """
    found = registry.find_version(*_parted(name))
    recorded, run, model = _recorded(found), registry.run_of(found), found.tags["model"]
    stage, commit = recorded["lock"]["stages"][f"train@{model}"], run["tags"].get("git.commit", "none")
    if commit == "none":
        raise ConfigurationError(
            f"{name} was trained outside of a git repository, or elsewhere: its code is not known."
        )
    with tempfile.TemporaryDirectory() as scratch:
        clone = Path(scratch, "checkout")
        _git("clone", "--quiet", "--no-checkout", ".", str(clone))
        _git("checkout", "--quiet", commit, cwd=clone, problem=f"commit {commit} is not in this repository; fetch it")
        if run["patch"]:
            _git("apply", "--whitespace=nowarn", "-", cwd=clone, given=run["patch"])
        restore(clone, recorded)
        inputs = sorted(
            {str(Path(*Path(one["path"]).parts[:3])) for one in stage["deps"] if one["path"][:5] == "data/"}
        )
        check_out(name, clone, inputs)
        print(f"{name}: train@{model} at {commit[:12]}{' with its patch' if run['patch'] else ''}", flush=True)
        env = os.environ | {"MLFLOW_TRACKING_URI": f"sqlite:///{clone}/mlflow.db"}
        done = subprocess.run([sys.executable, "-m", "stages", "train", model], cwd=clone, env=env, check=False)
        if done.returncode:
            raise ServiceError(f"the training ended with status {done.returncode}; its message is above.")
        digest = sha256(clone / "data/train" / found.name / model / "model.keras")
    if digest == found.tags["model_sha256"]:
        print(f"equal, byte by byte: SHA-256 {digest}")
        return
    why = "; ".join(_differences(run["tags"])) or "The libraries are the same; perhaps the device is another"
    raise IntegrityError(
        f"{name} could not be rebuilt: model.keras has SHA-256 {digest}, registered is {found.tags['model_sha256']}. "
        f"{why}."
    )


def rollback(dataset: str, to: str, reason: str) -> None:
    """Makes an earlier version champion again; the present one is not promoted again by register.

    Args:
        dataset: the registered model.
        to: a version.
        reason: for those who come after; it is kept with both versions.

    Raises:
        ConfigurationError: there is no such version, another tool made it, or it is the champion already.
        IntegrityError: its files were changed, or are gone.
    """
    target, holder = registry.find_version(dataset, to), registry.champion(dataset)
    if not registry.is_ours(target):
        raise ConfigurationError(registry.foreign(target))
    if not reason.strip():
        raise ConfigurationError("a rollback needs a --reason; it is kept with both versions.")
    if holder is not None and holder.version == target.version:
        raise ConfigurationError(f"version {to} of {dataset} is the champion already.")
    with registry.checked(target):  # nothing that could not be served becomes champion
        pass
    before = "no champion" if holder is None else f"version {holder.version}"
    if holder is not None:
        registry.describe_version(holder, {"rolled_back": reason})
    registry.describe_version(target, {"decision": json.dumps(f"went back to it from {before}: {reason}")})
    registry.forget_tag(target, "rolled_back")
    registry.promote(target)
    print(f"{dataset}: champion is version {target.version} ({target.tags['model']}), before {before}")


def clean(last: int, champions: bool, dry_run: bool) -> None:
    """Removes versions, runs, stored models, cached data and checkpoints that nothing which stays needs.

    What stays: versions with an alias and the ``last`` of each data set, with their runs, models and recorded data; all
    of registered models that params.yaml does not mention, with the same; the ``last`` runs and searches of each model,
    and running ones; the data of the workspace and of all branches and tags of git; the checkpoints of models in
    params.yaml. Where other checkouts share the cache or the store, their workspaces are not known here.

    Args:
        last: versions of a data set, and runs and searches of a model, that stay beside those with an alias.
        champions: whether older versions with an alias were asked to stay; they never go.
        dry_run: only say what would go.

    Raises:
        ConfigurationError: a version with an alias is older than the ``last``, and was not asked to stay; or it is not
            known what a version that stays needs. Nothing was removed.
    """
    content = params.load()
    stay, go = retention.unneeded(content["ingest"], last, kept_runs=_runs_of_workspace())
    held = [one for name in content["ingest"] for one in [known for known in stay if known.name == name][last:]]
    if held and not champions:
        named = ", ".join(f"{one.name}@{one.version} ({one.tags.get('model')})" for one in held)
        raise ConfigurationError(
            f"refused, nothing was removed: {named} would go, to which an alias such as champion points. "
            f"--keep-champions lets it stay; rollback makes another one champion first."
        )
    would = "would go" if dry_run else "gone"
    lineages = _lineages(stay, mentioned=content["ingest"])
    for one in go.versions:
        print(f"{would}: {one.name} version {one.version} ({one.tags.get('model')})")
    print(f"{would}: {len(go.versions)} versions, {len(go.runs)} runs, {len(go.models)} stored models")
    if not dry_run:
        retention.remove(go)
    objects, size = collect(lineages, dry_run)
    print(f"{would}: {objects:,} objects of DVC's cache, {_megabytes(size)}")
    for place in Path("data/train/.cache/checkpoints").glob("*/*"):
        if place.is_dir() and content["train"].get(place.name, {}).get("dataset") != place.parent.name:
            size = sum(file.stat().st_size for file in place.rglob("*"))
            whose = f"{place.name} on {place.parent.name}, which params.yaml has no more"
            print(f"{would}: checkpoints of {whose}, {_megabytes(size)}")
            if not dry_run:
                shutil.rmtree(place)


def _parted(name: str) -> tuple[str, str]:
    dataset, separator, which = name.partition("@")
    if not (dataset and separator and which):
        raise ConfigurationError(f"{name!r} names no version. Allowed: digits@champion, digits@3.")
    return dataset, which


def _recorded(found: registry.ModelVersion) -> dict[str, Any]:
    if not registry.is_ours(found):
        raise ConfigurationError(registry.foreign(found))
    text = registry.text_of(found, LINEAGE)
    if text is None:
        raise ConfigurationError(
            f"version {found.version} of {found.name} was registered without its lineage, by an older convoy."
        )
    content = json.loads(text)
    missing = [name for name in (f"train@{found.tags['model']}",) if name not in content["lock"]["stages"]]
    if missing:
        raise ConfigurationError(
            f"version {found.version} of {found.name} was trained outside of DVC: nothing is recorded of {missing[0]}."
        )
    return content


def _lineages(stay: Sequence[registry.ModelVersion], mentioned: Container[str]) -> list[dict[str, Any]]:
    """Returns what versions need, each lineage once.

    Args:
        stay: the versions.
        mentioned: names of data sets in params.yaml. Of others, a version without an alias may have no lineage: an
            older convoy registered it, or it was trained outside of DVC, so DVC has nothing for it.

    A version without an alias whose files are gone needs nothing any more.

    Raises:
        ConfigurationError: it cannot be read, or a version that has to have one has none.
    """
    found = {}
    for one in stay:
        try:
            lineage = _recorded(one)
        except (StageError, registry.MlflowException, OSError, ValueError) as error:
            if isinstance(error, ConfigurationError) and not one.aliases and one.name not in mentioned:
                continue
            if isinstance(error, IntegrityError) and not one.aliases:  # nothing of it can be had again
                print(f"{one.name}@{one.version} keeps no data: {error}")
                continue
            called = f" (alias {', '.join(one.aliases)})" if one.aliases else ""
            raise ConfigurationError(
                f"refused, nothing was removed: what {one.name}@{one.version}{called} needs is not known: {error} "
                "Register it again, or delete that version from the registry."
            ) from error
        found[json.dumps(lineage)] = lineage
    return list(found.values())


def _out(out: dict[str, Any], is_cached: bool) -> str:
    """Returns a line about an output: its hash, how much it is, and whether DVC's cache has it."""
    files = f"{out['nfiles']:,} files, " if "nfiles" in out else ""
    here = "" if is_cached else ", not in the cache"
    return f"{out['path']}: {out['md5'][:12]}, {files}{_megabytes(out['size'])}{here}"


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.2f} MB"


def _training(run: dict[str, Any], tags: dict[str, str]) -> list[str]:
    """Returns lines about a training: when, from which code, with which libraries, on which device."""
    known, patch = run["tags"], run["patch"]
    lines = [f"commit {known.get('git.commit', 'unknown')}"]
    if patch:
        changed = [line.split(" b/")[-1] for line in patch.splitlines() if line.startswith("diff --git")]
        lines.append(f"and an uncommitted patch of {', '.join(changed)} (git.patch of the run)")
    libraries = {key.removeprefix("library."): value for key, value in tags.items() if key.startswith("library.")}
    lines.append(f"{', '.join(f'{key} {value}' for key, value in libraries.items())}, Python {known.get('python')}")
    lines.append(f"on {known.get('devices')}; finished {known.get('finished')}; MLflow run {run['run_id']}")
    return lines


def _differences(known: dict[str, str]) -> list[str]:
    """Returns how a training's surroundings differ from those here."""
    found = []
    for key, value in known.items():
        if key.startswith("libraries."):
            library = key.removeprefix("libraries.")
            try:
                here = version(library)
            except PackageNotFoundError:
                here = "none"
            if here != value:
                found.append(f"{library} is {here}, was {value}")
    return found


def _git(*words: str, cwd: Path | None = None, given: str | None = None, problem: str = "") -> None:
    done = subprocess.run(["git", *words], cwd=cwd, input=given, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ConfigurationError(f"{problem or 'git ' + words[0] + ' failed'}: {done.stderr.strip()}")


def _runs_of_workspace() -> set[str]:
    """Returns the ids of the records that evaluate and register of this checkout would continue."""
    return {outbox.record_id(json.loads(file.read_text())) for file in Path("data/train").glob("*/*/run.json")}
