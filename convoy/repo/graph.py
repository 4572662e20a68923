"""Reads the graph of dvc.yaml from DVC, by parts of its Python API that are not documented.

``tests/unit/test_graph.py`` compares it with what ``dvc dag`` prints.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import networkx as nx
from dvc.dependency.param import ParamsDependency
from dvc.utils.serialize import load_yaml, modify_yaml

from convoy.errors import ConfigurationError
from convoy.repo.lockfile import LOCK
from convoy.repo.objects import open_repo


@dataclass(frozen=True)
class Node:
    """A stage.

    Attributes:
        name: DVC's, e.g. ``train@lenet5``.
        needs: names of the stages whose outputs it reads.
        data: .dvc files of the data that it reads.
        travels: whether another clone can run it, given a remote: it reads what a remote holds, not what lies on this
            machine or the web, and leaves nothing behind that a remote does not hold.
    """

    name: str
    needs: tuple[str, ...]
    data: tuple[str, ...] = ()
    travels: bool = True

    @property
    def group(self) -> str:
        """The stage of dvc.yaml that it is one of: ``train``."""
        return self.name.split("@")[0]

    @property
    def entry(self) -> str:
        """Its entry of params.yaml: ``lenet5``; "" where the stage has no entries."""
        return self.name.partition("@")[2]


def read(targets: Sequence[str] = ()) -> dict[str, Node]:
    """Returns every stage by its name, each behind those that it needs.

    Args:
        targets: names of stages, or of all of a kind (``train``); only these and what they need. Empty: all.

    Raises:
        ConfigurationError: DVC cannot read the graph, or a target is not in it.
    """
    with open_repo() as repo:
        whole = repo.index.graph
        nodes = {}
        for stage in whole:
            if stage.is_data_source:
                continue
            needs, data = [], []
            for other in whole.successors(stage):
                (data if other.is_data_source else needs).append(other.addressing)
            travels = bool(needs or data) and all(out.use_cache and out.can_push for out in stage.outs)
            name = stage.addressing
            nodes[name] = Node(name, tuple(sorted(needs)), tuple(sorted(data)), travels)
    graph = nx.DiGraph()
    graph.add_nodes_from(nodes)
    graph.add_edges_from((need, name) for name in nodes for need in nodes[name].needs)
    order = list(nx.lexicographical_topological_sort(graph))
    if targets:
        chosen = {name for target in targets for name in _meant(target, order)}
        chosen |= {need for name in chosen for need in nx.ancestors(graph, name)}
        order = [name for name in order if name in chosen]
    return {name: nodes[name] for name in order}


def imports() -> list[str]:
    """Returns the .dvc files that ``dvc import`` and ``dvc import-url`` wrote."""
    with open_repo() as repo:
        return sorted(stage.path_in_repo for stage in repo.index.graph if stage.is_import)


def remote() -> str | None:
    """Returns the name of the default remote; None: there is none."""
    with open_repo() as repo:
        return repo.config["core"].get("remote")


def changes(names: Sequence[str]) -> dict[str, list[str]]:
    """Returns for each of the stages what is not as dvc.lock says: ``stages/train/fit/fit.py modified``; [] if nothing.

    What stages would change for one another is not foreseen.
    """
    found: dict[str, list[str]] = {name: [] for name in names}
    with open_repo() as repo:
        for name, facts in repo.status(targets=list(names)).items() if names else ():
            for fact in facts:
                if isinstance(fact, str):  # "changed command", "always changed"
                    found[name].append(fact)
                else:
                    for things in fact.values():
                        found[name] += _said(things)
    return found


def code() -> list[str]:
    """Returns the files of this checkout that stages read and none writes, and dvc.yaml."""
    with open_repo() as repo:
        made = [Path(out.fs_path) for out in repo.index.outs]
        files = [dep for dep in repo.index.deps if dep.protocol == "local" and not isinstance(dep, ParamsDependency)]
        read = {Path(dep.fs_path) for dep in files if dep.is_in_repo}
        own = {path for path in read if not any(path in (out, *out.parents) or out in path.parents for out in made)}
        found = {
            file for path in own for file in (repo.dvcignore.find(repo.fs, str(path)) if path.is_dir() else [path])
        }
        paths = {Path(file).relative_to(repo.root_dir).as_posix() for file in found if Path(file).is_file()}
    return sorted({"dvc.yaml", *paths})


def parameters() -> list[str]:
    """Returns the files of parameters."""
    with open_repo() as repo:
        paths = {Path(dep.fs_path) for dep in repo.index.params if dep.is_in_repo}
        return sorted({"params.yaml", *(path.relative_to(repo.root_dir).as_posix() for path in paths)})


def entries(names: Sequence[str]) -> dict[str, dict]:
    """Returns what dvc.lock says of the stages that it knows."""
    with open_repo() as repo:
        known = load_yaml(str(Path(repo.root_dir, LOCK))) if LOCK.exists() else {}
    return {name: entry for name, entry in known.get("stages", {}).items() if name in names}


def merge(entries: Mapping[str, dict]) -> None:
    """Writes what dvc.lock of another clone says of some stages into the one here."""
    with open_repo(wait=True) as repo, repo.lock, modify_yaml(str(Path(repo.root_dir, LOCK))) as known:
        known.setdefault("schema", "2.0")
        stages = known.setdefault("stages", {})
        for name, entry in entries.items():
            if stages.get(name) != entry:
                stages[name] = entry


def ignore(names: Sequence[str]) -> None:
    """Has Git ignore the outputs of stages, as DVC does where it ran them.

    It matters beyond Git: a stage that depends on their folder depends on its .gitignore too.
    """
    with open_repo(wait=True) as repo, repo.lock:
        for name in names:
            repo.stage.load_one(name=name).ignore_outs()


def _meant(target: str, names: Sequence[str]) -> list[str]:
    found = [name for name in names if target in (name, name.split("@")[0])]
    if not found:
        raise ConfigurationError(f"no stage {target!r}. Stages: {', '.join(names)}.")
    return found


def _said(things: dict[str, str | dict[str, str]]) -> list[str]:
    """Returns ``{"params.yaml": {"train.x": "modified"}, "a": "deleted"}`` as a list of sentences."""
    result = []
    for thing, state in things.items():
        result += [f"{key} {how}" for key, how in state.items()] if isinstance(state, dict) else [f"{thing} {state}"]
    return result
