"""Optuna's part of a search: chooses values, ends poor trials early, remembers all trials. The only door to Optuna."""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, Trial, TrialState

from stages.search_space import Choice, Interval, Search

DIGITS = 4  # significant ones of a number that is tried, so that params.yaml stays legible
GRID = 12  # of one that is a number of steps; fewer would leave the grid
FACTOR = 3  # one trial of so many goes on, as in the paper of Hyperband
FIRST = 3  # the first look at a trial is after this part of its epochs; sooner ends good ones (benchmarks/RESULTS.md)
RANDOM = 10  # trials before TPE knows enough; each bracket of Hyperband is a study of its own to it
# Attributes of trials and of the study.
VALUES = "values"
AGAIN = "again"
SAME = "same"
WHY = "why"
LOSS = "val_loss"
SECONDS = "seconds"
SIZE = "parameters"
RUN = "run"


@dataclass(frozen=True, slots=True)
class TrialResult:
    """A trial that counts.

    Attributes:
        number: of it in the search.
        state: complete, pruned (ended early), or failed (it diverged, or its network is not valid).
        value: the objective at its end; None unless it is complete.
        loss: on the validation split, likewise.
        values: its hyperparameters.
        curve: epoch -> the objective.
        seconds: its time, with the start of its process.
        parameters: of its model.
        reason: its error, if it failed.
        same: number of the earlier trial with equal values, which stands for this one.
    """

    number: int
    state: str
    value: float | None
    loss: float
    values: dict[str, Any]
    curve: dict[int, float]
    seconds: float
    parameters: int | None
    reason: str
    same: int | None


def make_sampler(seed: int) -> optuna.samplers.BaseSampler:
    """Returns the tree-structured Parzen estimator, which chooses values by chance that follows from ``seed``.

    Source: Bergstra et al. 2011, "Algorithms for Hyper-Parameter Optimization"; several values at once as in Falkner et
    al. 2018, "BOHB", arXiv:1807.01774, section 3.2.
    """
    return optuna.samplers.TPESampler(seed=seed, n_startup_trials=RANDOM, multivariate=True)


def make_pruner(epochs: int, warmup: float) -> optuna.pruners.BasePruner:
    """Returns Hyperband, which ends poor trials early.

    Args:
        epochs: of a whole training.
        warmup: epochs, before whose end no trial is judged.

    Source: Li et al. 2018, "Hyperband", arXiv:1603.06560; asynchronous as in Li et al. 2020, arXiv:1810.05934.
    """
    first = min(epochs, max(1, epochs // FIRST, math.ceil(warmup)))
    return optuna.pruners.HyperbandPruner(first, epochs, FACTOR)


def suggest(trial: Trial, ranges: Mapping[str, Interval | Choice]) -> dict[str, Any]:
    """Returns the values of a new trial, as params.yaml will have them."""
    values: dict[str, Any] = {}
    for name, one in ranges.items():
        if isinstance(one, Choice):
            values[name] = json.loads(trial.suggest_categorical(name, one.labels))
        elif one.whole:
            values[name] = trial.suggest_int(name, one.low, one.high, step=one.step or 1, log=one.log)
        else:
            number = trial.suggest_float(name, one.low, one.high, step=one.step, log=one.log)
            digits = GRID if one.step else DIGITS
            values[name] = min(max(float(f"{number:.{digits}g}"), one.low), one.high)
    return values


def encode(values: Mapping[str, Any], ranges: Mapping[str, Interval | Choice]) -> dict[str, Any]:
    """Returns values in Optuna's form, which makes a trial take them."""
    return {name: json.dumps(values[name]) if isinstance(one, Choice) else values[name] for name, one in ranges.items()}


class Study:
    """The record of a search in ``search.db``, which a later run of the same search continues.

    Args:
        search: the search.
        folder: place of the database.
        name: of the study; searches of the same name continue it.
    """

    def __init__(self, search: Search, folder: Path, name: str) -> None:
        self._search, self.name = search, name
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._study = optuna.create_study(
            storage=_create_store(folder.resolve()),
            study_name=name,
            load_if_exists=True,
            direction="minimize" if search.smaller else "maximize",
            pruner=make_pruner(search.train["epochs"], search.train["warmup"]),
        )
        # After a stop it would otherwise try again what it tried at first.
        seed = hashlib.sha256(f"{search.seed} {len(self._study.trials)}".encode()).digest()[:4]
        self._study.sampler = make_sampler(int.from_bytes(seed))
        self._take_up()

    def _take_up(self) -> None:
        """Repeats the trials that a former run left open; and sees that the entry's own values are tried."""
        for one in self._study.get_trials(states=(TrialState.RUNNING,)):
            self._study.tell(one.number, state=TrialState.FAIL)
            if VALUES in one.user_attrs:
                print(f"trial {one.number} was not at its end: it is done again")
                kept = {key: one.user_attrs[key] for key in (VALUES, AGAIN) if key in one.user_attrs}
                self._study.enqueue_trial(encode(kept[VALUES], self._search.ranges), kept)
        known = self._study.get_trials(states=(TrialState.COMPLETE, TrialState.WAITING))
        if not any(one.user_attrs[VALUES] == self._search.own for one in known):
            self._study.enqueue_trial(encode(self._search.own, self._search.ranges), {VALUES: self._search.own})

    @property
    def run_id(self) -> str | None:
        """MLflow's run of the search, if it was begun."""
        return self._study.user_attrs.get(RUN)

    @run_id.setter
    def run_id(self, run_id: str) -> None:
        self._study.set_user_attr(RUN, run_id)

    def count(self) -> int:
        """Returns the number of trials that count, those at work included."""
        states = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.RUNNING)
        return len(self._study.get_trials(deepcopy=False, states=states))

    def ask(self) -> Trial | None:
        """Returns a new trial, whose values are in its attribute VALUES.

        None if an earlier trial had the same values: then the new one has ended already, with the same result.
        """
        trial = self._study.ask()
        values = trial.user_attrs.get(VALUES) or suggest(trial, self._search.ranges)
        if VALUES in trial.user_attrs:
            suggest(trial, self._search.ranges)  # Optuna notes the values, which are fixed
        trial.set_user_attr(VALUES, values)
        if (same := self._find_same(trial.number, values)) is None:
            return trial
        trial.set_user_attr(SAME, same.number)
        self.tell(trial, same.value if same.state == TrialState.COMPLETE else None, same.user_attrs)
        return None

    def _find_same(self, number: int, values: Mapping[str, Any]) -> FrozenTrial | None:
        states = (TrialState.COMPLETE,) if values == self._search.own else (TrialState.COMPLETE, TrialState.PRUNED)
        for one in self._study.get_trials(deepcopy=False, states=states):
            if one.user_attrs[VALUES] == values and one.number != number and SAME not in one.user_attrs:
                return one
        return None

    def tell(self, trial: Trial, value: float | None, attributes: Mapping[str, Any]) -> None:
        """Ends a trial with a value, or without one as pruned."""
        for key in (LOSS, SIZE, WHY):
            if key in attributes:
                trial.set_user_attr(key, attributes[key])
        if value is None:
            self._study.tell(trial, state=TrialState.PRUNED)
        else:
            self._study.tell(trial, value)

    def repeat(self, trial: Trial, reason: str) -> None:
        """Ends a trial as failed, and has another one take its values."""
        values, again = trial.user_attrs[VALUES], trial.user_attrs.get(AGAIN, 0)
        trial.set_user_attr(WHY, reason)
        self._study.tell(trial, state=TrialState.FAIL)
        self._study.enqueue_trial(encode(values, self._search.ranges), {VALUES: values, AGAIN: again + 1})

    def collect_results(self) -> list[TrialResult]:
        """Returns the trials that count, oldest first."""
        found = []
        for one in self._study.get_trials(states=(TrialState.COMPLETE, TrialState.PRUNED)):
            attributes = one.user_attrs
            state = "failed" if WHY in attributes else one.state.name.lower()
            found.append(
                TrialResult(
                    number=one.number, state=state, value=one.value, loss=attributes.get(LOSS, math.inf),
                    values=attributes[VALUES], curve=one.intermediate_values, seconds=attributes.get(SECONDS, 0.0),
                    parameters=attributes.get(SIZE), reason=attributes.get(WHY, ""), same=attributes.get(SAME),
                )
            )  # fmt: skip
        return found

    def compute_importances(self) -> dict[str, float]:
        """Returns value -> share of the differences between whole trials that it explains; {} if they are equal.

        Source: Hutter et al. 2014, "An Efficient Approach for Assessing Hyperparameter Importance" (fANOVA).
        """
        values = {one.value for one in self._study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))}
        if len(values) < 2:
            return {}
        evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
        return optuna.importance.get_param_importances(self._study, evaluator=evaluator)


def _create_store(folder: Path) -> str:
    """Returns the address of the store of trials; it is created at once or not at all."""
    database, partial = folder / "search.db", folder / "search.db.partial"
    if not database.exists():
        partial.unlink(missing_ok=True)
        optuna.storages.RDBStorage(f"sqlite:///{partial}").engine.dispose()
        partial.rename(database)
    return f"sqlite:///{database}"
