"""Looks for better values of a model's entry in params.yaml: ``python -m flows tune lenet5``.

Optuna chooses the values (TPE), and ends poor trials early (Hyperband); a trial is a training in a process of its own,
on a device of the flows. It has a small checkout, ``data/tune/<model>/trials/<number>``: params.yaml with its values,
and links to the training and validation examples. There is no test split in it, and nothing of DVC's.

What was tried is in ``data/tune/<model>/search.db``, so the same command goes on where the last one ended, however that
was; other ranges, data, code or fixed values begin anew there. In MLflow a search is a run that holds one per trial.
"""

import hashlib
import json
import math
import os
import shutil
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
from filelock import FileLock
from optuna.trial import FrozenTrial, Trial, TrialState

from convoy import CODE, params
from convoy.checksums import sha256
from convoy.data.shards import INDEX, Shards
from convoy.errors import ConfigurationError, DivergedError, ServiceError, StageError
from convoy.machine import guard
from convoy.tracking import runs
from flows.run import devices
from flows.run.exclusive import alone
from flows.run.runner import MEMORY
from flows.tune import report
from flows.tune.report import Tried
from stages import check
from stages.check import prepare
from stages.search_space import Choice, Interval, Search, define
from stages.train.train import ROW, code

FOLDER = Path("data/tune")
DATA = ("train", "val", "about.json", "key.json")  # of data/ingest/<dataset>: what a trial and its augmentation read
DIGITS = 4  # significant ones of a number that is tried, so that params.yaml stays legible
GRID = 12  # of one that is a number of steps; fewer would leave the grid
FACTOR = 3  # of so many trials one goes on, as in the paper of Hyperband
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


class TrialFailedError(StageError):
    """A trial without which, or with which, a search cannot go on."""

    def __init__(self, number: int, status: int, why: str) -> None:
        super().__init__(f"trial {number}: {why}")
        self.status = status


@dataclass
class Outcome:
    """How a trial ended.

    Attributes:
        status: of its process; None: the search ended before it did.
        rows: of the history.
        pruned: it was ended early.
        kept: the epoch that counts, 0 unless it came to its end.
        parameters: of its model.
        why: what went wrong.
    """

    status: int | None = 0
    rows: list[dict[str, float]] = field(default_factory=list)
    pruned: bool = False
    kept: int = 0
    parameters: int = 0
    why: str = ""


def tune(model: str, trials: int | None = None, minutes: float | None = None, slots: int | None = None) -> None:
    """Searches, and writes the best values into params.yaml if they are better than those that stand there.

    Args:
        model: an entry of ``tune:``.
        trials: as there, with those of former runs of the same search.
        minutes: likewise, of this run.
        slots: as of ``pipeline``.

    Raises:
        BusyError: another search of this model runs.
        ConfigurationError: there is no such entry, or its data set is not there yet.
        TrialFailedError: of the values that the entry has; or an outside service failed.
    """
    check.check()
    search = read(model, trials, minutes)
    _check_data(search)
    folder = FOLDER / model
    with alone(f"search of {model}", _say_died, folder / ".search.json"):
        runs.end_abandoned()
        tuning = Tuning(search, folder, devices.found(slots))
        parameters = {name: str(one) for name, one in search.ranges.items()} | {"seed": search.seed}
        former = tuning.study.user_attrs.get(RUN)
        with runs.run(f"tune@{model}", search.dataset, parameters, _inputs(search), former) as run_id:
            tuning.study.set_user_attr(RUN, run_id)
            tuning.run(run_id)
            tuning.finish()


def read(model: str, trials: int | None = None, minutes: float | None = None) -> Search:
    """Returns the search of ``model`` in params.yaml, with other budgets if some are given.

    Raises:
        ConfigurationError: there is none, or something about it is wrong.
    """
    entries = params.load()[params.TUNE]
    if model not in entries:
        raise ConfigurationError(
            f"params.yaml has no tune entry {model!r}. Entries: {', '.join(entries) or 'none'}. One has ranges for "
            "keys of the train entry: see README.md, Search."
        )
    given = {key: value for key, value in (("trials", trials), ("minutes", minutes)) if value is not None}
    return define(model, prepare(params.TUNE, model, entries[model] | given))


def sampler(seed: int) -> optuna.samplers.BaseSampler:
    """Returns what chooses the values, by chance that follows from ``seed``: the tree-structured Parzen estimator.

    Source: Bergstra et al. 2011, "Algorithms for Hyper-Parameter Optimization"; several values at once as in Falkner et
    al. 2018, "BOHB", arXiv:1807.01774, section 3.2.
    """
    return optuna.samplers.TPESampler(seed=seed, n_startup_trials=RANDOM, multivariate=True)


def pruner(epochs: int, warmup: float) -> optuna.pruners.BasePruner:
    """Returns what ends trials early.

    Args:
        epochs: of a whole training.
        warmup: epochs, before whose end no trial is judged.

    Source: Li et al. 2018, "Hyperband", arXiv:1603.06560; asynchronous as in Li et al. 2020, arXiv:1810.05934.
    """
    first = min(epochs, max(1, epochs // FIRST, math.ceil(warmup)))
    return optuna.pruners.HyperbandPruner(first, epochs, FACTOR)


def suggested(trial: Trial, ranges: Mapping[str, Interval | Choice]) -> dict[str, Any]:
    """Returns the values that a trial is to have, as params.yaml will have them."""
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


def noted(values: Mapping[str, Any], ranges: Mapping[str, Interval | Choice]) -> dict[str, Any]:
    """Returns values as a study keeps them, so that a trial has to take them."""
    return {name: json.dumps(values[name]) if isinstance(one, Choice) else values[name] for name, one in ranges.items()}


class Tuning:
    """A search at work.

    Args:
        search: what is searched.
        folder: its place.
        slots: devices of the trials.

    Attributes:
        study: Optuna's record of it.
    """

    def __init__(self, search: Search, folder: Path, slots: list[devices.Slot]) -> None:
        self._search, self._folder, self._places = search, folder, devices.Slots(slots)
        self._ended, self._asking = guard.Ended(), threading.Lock()
        self._stop = time.monotonic() + 60 * search.minutes if search.minutes else math.inf
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.study = optuna.create_study(
            storage=_store(folder.resolve()),
            study_name=f"{search.model}-{_identity(search)}",
            load_if_exists=True,
            direction="minimize" if search.smaller else "maximize",
            pruner=pruner(search.train.epochs, search.train.warmup),
        )
        # After a stop it would otherwise try again what it tried at first.
        seed = hashlib.sha256(f"{search.seed} {len(self.study.trials)}".encode()).digest()[:4]
        self.study.sampler = sampler(int.from_bytes(seed))
        shutil.rmtree(folder / "trials", ignore_errors=True)
        (folder / "trials").mkdir(parents=True)
        self._params = folder / "trials" / params.PARAMS  # as it is now, whatever becomes of it meanwhile
        shutil.copy(params.PARAMS, self._params)
        self._take_up()

    def _take_up(self) -> None:
        """Has done again what a former run left undone; and sees that the entry's own values are tried."""
        for one in self.study.get_trials(states=(TrialState.RUNNING,)):
            self.study.tell(one.number, state=TrialState.FAIL)
            if VALUES in one.user_attrs:
                print(f"trial {one.number} was not at its end: it is done again")
                kept = {key: one.user_attrs[key] for key in (VALUES, AGAIN) if key in one.user_attrs}
                self.study.enqueue_trial(noted(kept[VALUES], self._search.ranges), kept)
        known = self.study.get_trials(states=(TrialState.COMPLETE, TrialState.WAITING))
        if not any(one.user_attrs[VALUES] == self._search.own for one in known):
            self.study.enqueue_trial(noted(self._search.own, self._search.ranges), {VALUES: self._search.own})

    def run(self, parent: str) -> None:
        """Does trials until there are enough, or time is up.

        Args:
            parent: MLflow's run of the search.
        """
        at_once = max(1, len(self._places.all) // self._search.train.devices)
        print(f"{self._search.model}: {self._counted()} of {self._search.trials} trials are done, {at_once} at once")
        with ThreadPoolExecutor(at_once) as pool:
            try:
                for worker in as_completed([pool.submit(self._work, parent) for _ in range(at_once)]):
                    worker.result()
            finally:
                self._ended.set()

    def _counted(self) -> int:
        states = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.RUNNING)
        return len(self.study.get_trials(deepcopy=False, states=states))

    def _work(self, parent: str) -> None:
        while (asked := self._next()) is not None:
            trial, values = asked
            with runs.nested(parent, f"trial {trial.number}", values) as run:
                began = time.monotonic()
                outcome = self._trained(trial, values, run)
                trial.set_user_attr(SECONDS, round(time.monotonic() - began, 1))
                state = self._told(trial, values, outcome)
                run.end(state, {"complete": "FINISHED", "pruned": "FINISHED", "ended": "KILLED"}.get(state, "FAILED"))

    def _next(self) -> tuple[Trial, dict[str, Any]] | None:
        """Returns a trial that is to be done; None if none is."""
        with self._asking:
            while not self._ended.is_set() and time.monotonic() < self._stop and self._counted() < self._search.trials:
                if f"{self._search.model}-{_identity(self._search)}" != self.study.study_name:
                    raise ConfigurationError("data or code changed during the search; the same command begins anew.")
                trial = self.study.ask()
                values = trial.user_attrs.get(VALUES) or suggested(trial, self._search.ranges)
                if VALUES in trial.user_attrs:
                    suggested(trial, self._search.ranges)  # notes the values that it has to take
                trial.set_user_attr(VALUES, values)
                if (same := self._same(trial.number, values)) is None:
                    return trial, values
                trial.set_user_attr(SAME, same.number)
                self._tell(trial, same.value if same.state == TrialState.COMPLETE else None, same.user_attrs)
        return None

    def _same(self, number: int, values: Mapping[str, Any]) -> FrozenTrial | None:
        """Returns an earlier trial of the same values, whose outcome would be the same."""
        states = (TrialState.COMPLETE,) if values == self._search.own else (TrialState.COMPLETE, TrialState.PRUNED)
        for one in self.study.get_trials(deepcopy=False, states=states):
            if one.user_attrs[VALUES] == values and one.number != number and SAME not in one.user_attrs:
                return one
        return None

    def _trained(self, trial: Trial, values: Mapping[str, Any], run: runs.Nested) -> Outcome:
        with self._checkout(trial.number, values) as folder:
            if self._search.augments:
                with self._started(folder, "augment", self._search.dataset) as (said, process):
                    last = deque(said, maxlen=50)
                if process.returncode:
                    return self._failed(process.returncode, last)
            with self._places.taken(self._search.train.devices, self._ended, lambda: None) as taken:
                if taken is None:
                    return Outcome(None)
                print(f"trial {trial.number}, on {taken.name}: {_listed(values)}", flush=True)
                return self._followed(trial, values, run, folder, taken)

    def _followed(
        self, trial: Trial, values: Mapping[str, Any], run: runs.Nested, folder: Path, taken: devices.Taken
    ) -> Outcome:
        """Has a trial train, notes what it says, and ends it if it does not promise much."""
        outcome, last = Outcome(), deque(maxlen=50)
        judged = values != self._search.own
        with self._started(folder, "trial", self._search.model, taken) as (said, process):
            for line in said:
                if not line.startswith(ROW):
                    last.append(line)
                    continue
                row = json.loads(line.removeprefix(ROW))
                if "kept" in row:
                    outcome.kept, outcome.parameters = row["kept"], row["parameters"]
                    continue
                outcome.rows.append(row)
                run.log_metrics(row, row["epoch"])
                trial.report(row[self._search.objective], row["epoch"])
                if judged and row["epoch"] < self._search.train.epochs and trial.should_prune():
                    outcome.pruned = True
                    return outcome
        return outcome if process.returncode == 0 else self._failed(process.returncode, last, outcome)

    def _failed(self, status: int, last: deque[str], outcome: Outcome | None = None) -> Outcome:
        errors = [line for line in last if line.startswith("error:")] or [line for line in last if MEMORY.search(line)]
        why = (errors or [*last] or ["it said nothing"])[-1].removeprefix("error: ").strip()
        outcome = outcome or Outcome()
        outcome.status = None if self._ended.is_set() else status
        outcome.why = f"killed by signal {status - 128}" if status > 128 and not errors else why
        return outcome

    def _told(self, trial: Trial, values: Mapping[str, Any], outcome: Outcome) -> str:
        """Tells the study how a trial ended, and returns it in a word.

        What diverges, cannot be built or needs too much memory is as bad as what is pruned; what was killed is done
        again, once.
        """
        number, again = trial.number, trial.user_attrs.get(AGAIN, 0)
        if outcome.status is None:  # it stays open, which the next run sees
            return "ended"
        if outcome.status == 0:
            kept = outcome.rows[outcome.kept - 1] if outcome.kept else outcome.rows[-1]
            attributes = {SIZE: outcome.parameters, LOSS: kept["val_loss"]}
            self._tell(trial, None if outcome.pruned else kept[self._search.objective], attributes)
            score = report.shown(self._search, kept[self._search.objective])
            how = f"ended early after epoch {len(outcome.rows)}" if outcome.pruned else f"epoch {outcome.kept}"
            print(f"trial {number}: {self._search.objective} {score}, {how}", flush=True)
            return "pruned" if outcome.pruned else "complete"
        hopeless = outcome.status in (ConfigurationError.status, DivergedError.status) or MEMORY.search(outcome.why)
        short = outcome.status == ServiceError.status and " of memory" in outcome.why  # others have it
        passing = outcome.status > 128 or outcome.status == 1 or short
        if (values == self._search.own and (hopeless or again)) or not (hopeless or passing):
            raise TrialFailedError(number, outcome.status, outcome.why)
        print(f"trial {number}: {outcome.why}", flush=True)
        if hopeless or again:
            self._tell(trial, None, {WHY: outcome.why})
            return "failed"
        trial.set_user_attr(WHY, outcome.why)
        with self._asking:
            self.study.tell(trial, state=TrialState.FAIL)
            self.study.enqueue_trial(noted(values, self._search.ranges), {VALUES: values, AGAIN: again + 1})
        return "failed"

    def _tell(self, trial: Trial, value: float | None, attributes: Mapping[str, Any]) -> None:
        """Ends a trial with a value, or without one as pruned."""
        for key in (LOSS, SIZE, WHY):
            if key in attributes:
                trial.set_user_attr(key, attributes[key])
        if value is None:
            self.study.tell(trial, state=TrialState.PRUNED)
        else:
            self.study.tell(trial, value)

    @contextmanager
    def _checkout(self, number: int, values: Mapping[str, Any]) -> Iterator[Path]:
        """Yields a folder in which stages see the values of a trial, and of the data what they may see."""
        folder, dataset = self._folder / "trials" / f"{number:04}", self._search.dataset
        changes, place = self._search.changes(values), ("train", self._search.model, "word_vectors")
        if vectors := changes.get(place, self._search.train.word_vectors):  # a path from the checkout
            changes |= {place: str(Path(vectors).resolve())}
        try:
            (folder / "data/ingest" / dataset).mkdir(parents=True)
            for name in DATA:
                (folder / "data/ingest" / dataset / name).symlink_to(Path("data/ingest", dataset, name).resolve())
            (folder / "data/augment").mkdir()
            if not self._search.augments:
                (folder / "data/augment" / dataset).symlink_to(Path("data/augment", dataset).resolve())
            params.write(changes, self._params, folder / params.PARAMS)
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    @contextmanager
    def _started(self, folder: Path, command: str, name: str, taken: devices.Taken | None = None) -> Iterator[tuple]:
        """Runs a command of ``stages`` in a folder, under a guard; yields what it prints, and the guard."""
        path = os.pathsep.join(filter(None, [str(CODE), os.environ.get("PYTHONPATH")]))
        environment = guard.environment() | {"PYTHONPATH": path} | (taken.environment if taken else {})
        process = guard.start(
            [sys.executable, "-m", "stages", command, name],
            env=environment, cwd=str(folder), holding=taken.locks if taken else (),
        )  # fmt: skip
        with self._ended.over(process):
            yield process.stdout, process

    def finish(self) -> None:
        """Writes the best values into params.yaml if they are better, and the page; prints what was found."""
        search, tried = self._search, self._tried()
        whole = [one for one in tried if one.state == "complete"]
        own = next((one for one in whole if one.values == search.own), None)
        if own is None:
            print(
                "the values that the entry has were not tried to the end: nothing is written. The same command goes on."
            )
            return
        best = min(whole, key=self._rank)
        written = self._rank(best)[:2] < self._rank(own)[:2] and self._write(best)
        shutil.rmtree(self._folder / "trials")
        page = self._folder / "report.html"
        examples = len(Shards(Path("data/ingest", search.dataset, "val"), verify=False))
        report.write(page, search, tried, best, own, _importances(self.study), written, examples)
        runs.log_file(page)
        runs.log_metrics({search.objective: best.value, f"{search.objective}_of_entry": own.value})
        pruned = sum(one.state == "pruned" for one in tried)
        print(f"{len(tried)} trials, {pruned} ended early; {search.objective}: best "
              f"{report.shown(search, best.value)} (trial {best.number}), with the values that the entry had "
              f"{report.shown(search, own.value)}")  # fmt: skip
        for place, value in search.changes(best.values).items():
            print(f"  {'.'.join(place)}: {json.dumps(value)}")
        print("params.yaml has them now; `dvc repro` trains with them" if written else "params.yaml stays as it is")
        others = [name for name in params.models(search.dataset) if name != search.model]
        if written and others and any(place[0] == "augment" for place in search.changes(best.values)):
            print(f"augment.{search.dataset} is also that of {', '.join(others)}: they will be trained again")
        print(f"page: {page}")

    def _rank(self, one: Tried) -> tuple[float, float, int]:
        """Returns what is smaller for the better: of equal values that of the smaller loss, then the earlier."""
        return self._search.signed(one.value), 0.0 if "label_smoothing" in self._search.ranges else one.loss, one.number

    def _write(self, best: Tried) -> bool:
        """Writes the values of a trial into params.yaml unless it was edited meanwhile; returns whether it did."""
        with FileLock(FOLDER / ".params.lock"):
            if _basis(read(self._search.model)) != _basis(self._search):
                print("params.yaml says something else than when the search began: nothing is written.")
                return False
            params.write(self._search.changes(best.values))
        return True

    def _tried(self) -> list[Tried]:
        """Returns the trials that count, oldest first."""
        found = []
        for one in self.study.get_trials(states=(TrialState.COMPLETE, TrialState.PRUNED)):
            attributes = one.user_attrs
            state = "failed" if WHY in attributes else one.state.name.lower()
            found.append(
                Tried(
                    number=one.number, state=state, value=one.value, loss=attributes.get(LOSS, math.inf),
                    values=attributes[VALUES], curve=one.intermediate_values, seconds=attributes.get(SECONDS, 0.0),
                    parameters=attributes.get(SIZE), why=attributes.get(WHY, ""), same=attributes.get(SAME),
                )
            )  # fmt: skip
        return found


def _store(folder: Path) -> str:
    """Returns the address of the store of trials; it is created at once or not at all."""
    database, partial = folder / "search.db", folder / "search.db.partial"
    if not database.exists():
        partial.unlink(missing_ok=True)
        optuna.storages.RDBStorage(f"sqlite:///{partial}").engine.dispose()
        partial.rename(database)
    return f"sqlite:///{database}"


def _basis(search: Search) -> tuple:
    """Returns what has to be the same for the values that a search found to be the ones to write."""
    return search.own, search.ranges, search.places, search.train, search.augment


def _identity(search: Search) -> str:
    """Returns a hash of all that decides what a trial of some values comes to."""
    places = set(search.places.values())
    fixed = {key: value for key, value in search.train if ("train", search.model, key) not in places}
    fixed["sizes"] = {key: value for key, value in fixed["sizes"].items() if (*_sizes(search), key) not in places}
    facts = [{name: repr(one) for name, one in search.ranges.items()}, fixed, search.seed, _inputs(search)]
    if search.augments:
        facts.append({k: v for k, v in search.augment if ("augment", search.dataset, k) not in places})
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:12]


def _sizes(search: Search) -> tuple[str, str, str]:
    return "train", search.model, "sizes"


def _inputs(search: Search) -> dict[str, str]:
    """Returns the data and the code that trials read: path -> SHA-256."""
    return {str(path): sha256(path) for path in _data(search)} | code(search.train.architecture)


def _data(search: Search) -> tuple[Path, ...]:
    """Returns the files that say what the data is; about.json has the vocabulary of texts."""
    trained = Path("data", "ingest" if search.augments else "augment", search.dataset)
    return Path("data/ingest", search.dataset, "val", INDEX), trained / "train" / INDEX, trained / "about.json"


def _check_data(search: Search) -> None:
    for path in _data(search):
        if not path.exists():
            raise ConfigurationError(f"{path} is not there. `dvc repro {path.parts[1]}@{search.dataset}` makes it.")


def _importances(study: optuna.Study) -> dict[str, float]:
    """Returns how much of the differences between whole trials each value explains; {} where they say nothing.

    Source: Hutter et al. 2014, "An Efficient Approach for Assessing Hyperparameter Importance" (fANOVA).
    """
    values = {one.value for one in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))}
    if len(values) < 2:
        return {}
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    return optuna.importance.get_param_importances(study, evaluator=evaluator)


def _say_died(before: dict) -> None:
    print(
        f"the last {before['what']} did not end: process {before['pid']} on {before['host']} died; going on from there"
    )


def _listed(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {json.dumps(value)}" for name, value in values.items())
