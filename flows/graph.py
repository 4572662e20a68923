"""The graph of dvc.yaml, read from DVC: the only door to its Python API, of which these parts are not documented.

``tests/test_graph.py`` compares it with what ``dvc dag`` prints.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import networkx as nx

from stages.errors import ConfigurationError
from stages.verify import opened


@dataclass(frozen=True)
class Node:
    """A stage.

    Attributes:
        name: DVC's, e.g. ``train@lenet5``.
        needs: names of the stages whose outputs it reads.
    """

    name: str
    needs: tuple[str, ...]

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
        targets: names of stages, or of all of a kind (``train``); only these and what they need. None: all.

    Raises:
        ConfigurationError: DVC cannot read the graph, or a target is not in it.
    """
    with opened() as repo:
        whole = repo.index.graph
        stages = {stage.addressing: stage for stage in whole if not stage.is_data_source}
        needs = {
            name: tuple(sorted(other.addressing for other in whole.successors(stage) if not other.is_data_source))
            for name, stage in stages.items()
        }
    graph = nx.DiGraph()
    graph.add_nodes_from(needs)
    graph.add_edges_from((need, name) for name in needs for need in needs[name])
    order = list(nx.lexicographical_topological_sort(graph))
    if targets:
        chosen = {name for target in targets for name in _meant(target, order)}
        chosen |= {need for name in chosen for need in nx.ancestors(graph, name)}
        order = [name for name in order if name in chosen]
    return {name: Node(name, needs[name]) for name in order}


def imports() -> list[str]:
    """Returns the .dvc files of what ``dvc import`` and ``dvc import-url`` brought."""
    with opened() as repo:
        return sorted(stage.path_in_repo for stage in repo.index.graph if stage.is_import)


def remote() -> str | None:
    """Returns the name of the default remote; None: there is none."""
    with opened() as repo:
        return repo.config["core"].get("remote")


def changes(names: Sequence[str]) -> dict[str, list[str]]:
    """Returns for each of the stages what is not as dvc.lock says: ``stages/train/loop.py modified``; [] if nothing.

    What stages would change for one another is not foreseen.
    """
    found: dict[str, list[str]] = {name: [] for name in names}
    with opened() as repo:
        for name, facts in repo.status(targets=list(names)).items() if names else ():
            for fact in facts:
                if isinstance(fact, str):  # "changed command", "always changed"
                    found[name].append(fact)
                else:
                    for things in fact.values():
                        found[name] += _said(things)
    return found


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
