"""Searches for better values of a model's entry in params.yaml: ``convoy tune lenet5``.

Optuna chooses the values (TPE), and ends poor trials early (Hyperband). A trial is a training in a process of its own,
on a device of the flows. The trials are kept in ``data/tune/<model>/search.db``, so the same command continues where
the last one ended, however that was; other ranges, data, code or fixed values start a new search there. In MLflow a
search is a run that holds one per trial.
"""

import math
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any

from convoy.errors import ConfigurationError, DivergedError, ServiceError, StageError
from convoy.machine.room import OUT_OF_MEMORY
from convoy.tracking import runs
from flows.run import devices
from flows.run.exclusive import claim
from flows.tune import report, results
from flows.tune.search import FOLDER, check_data, checksum_inputs, identify, read
from flows.tune.study import AGAIN, LOSS, SECONDS, SIZE, VALUES, WHY, Study, Trial
from flows.tune.trials import TrialOutcome, TrialRunner
from stages import check
from stages.search_space import Search


class TrialFailedError(StageError):
    """A trial whose failure ends the search."""

    def __init__(self, number: int, status: int, reason: str) -> None:
        super().__init__(f"trial {number}: {reason}")
        self.status = status


def tune(model: str, trials: int | None = None, minutes: float | None = None, slots: int | None = None) -> None:
    """Searches, and writes the best values into params.yaml if they are better than those that stand there.

    Args:
        model: an entry of ``tune:``.
        trials: as there, with those of former runs of the same search.
        minutes: likewise, of this run.
        slots: as in ``pipeline``.

    Raises:
        BusyError: another search of this model runs.
        ConfigurationError: there is no such entry, or its data set is not there yet.
        TrialFailedError: of the values that the entry has; or an outside service failed.
    """
    check.check()
    search = read(model, trials, minutes)
    check_data(search)
    folder = FOLDER / model
    with claim(f"search of {model}", _report_crash, folder / ".search.json"):
        runs.end_abandoned()
        trial_runner = TrialRunner(search, folder, devices.find(slots))
        study = Study(search, folder, identify(search))
        parameters = {name: str(one) for name, one in search.ranges.items()} | {"seed": search.seed}
        with runs.run(f"tune@{model}", search.dataset, parameters, checksum_inputs(search), study.run_id) as run_id:
            study.run_id = run_id
            Tuning(search, study, trial_runner).run(run_id)
            if results.finish(search, study, folder):
                trial_runner.remove()


class Tuning:
    """A search at work: asks the study for trials, runs them, and tells it their results.

    Args:
        search: the search.
        study: its record.
        trial_runner: runs its trials.
    """

    def __init__(self, search: Search, study: Study, trial_runner: TrialRunner) -> None:
        self._search, self._study, self._runner = search, study, trial_runner
        self._ended, self._asking = trial_runner.ended, threading.Lock()
        self._stop = time.monotonic() + 60 * search.minutes if search.minutes else math.inf

    def run(self, parent: str) -> None:
        """Runs trials until there are enough, or time is up.

        Args:
            parent: MLflow's run of the search.
        """
        search, at_once = self._search, self._runner.at_once
        print(f"{search.model}: {self._study.count()} of {search.trials} trials are done, {at_once} at once")
        with ThreadPoolExecutor(at_once) as pool:
            try:
                for worker in as_completed([pool.submit(self._work, parent) for _ in range(at_once)]):
                    worker.result()
            finally:
                self._ended.set()

    def _work(self, parent: str) -> None:
        while (trial := self._next()) is not None:
            values = trial.user_attrs[VALUES]
            with runs.nested(parent, f"trial {trial.number}", values) as run:
                began = time.monotonic()
                outcome = self._runner.run(trial.number, values, self._judge(trial, run))
                trial.set_user_attr(SECONDS, round(time.monotonic() - began, 1))
                state = self._tell(trial, values, outcome)
                run.end(state, {"complete": "FINISHED", "pruned": "FINISHED", "ended": "KILLED"}.get(state, "FAILED"))

    def _next(self) -> Trial | None:
        """Returns the next trial; None if there are enough, or time is up."""
        with self._asking:
            while not self._ended.is_set() and time.monotonic() < self._stop:
                if self._study.count() >= self._search.trials:
                    break
                if identify(self._search) != self._study.name:
                    raise ConfigurationError(
                        "data or code changed during the search; the same command starts a new search."
                    )
                if (trial := self._study.ask()) is not None:
                    return trial
        return None

    def _judge(self, trial: Trial, run: runs.Nested) -> Callable[[dict[str, float]], bool]:
        """Returns a function that records a row of the history, and returns whether the trial is hopeless."""
        may_end = trial.user_attrs[VALUES] != self._search.own

        def is_hopeless(row: dict[str, float]) -> bool:
            run.log_metrics(row, row["epoch"])
            trial.report(row[self._search.objective], row["epoch"])
            return may_end and row["epoch"] < self._search.train["epochs"] and trial.should_prune()

        return is_hopeless

    def _tell(self, trial: Trial, values: Mapping[str, Any], outcome: TrialOutcome) -> str:
        """Tells the study how a trial ended, and returns its state in a word.

        A trial that diverges, cannot be built or needs too much memory is as bad as a pruned one. A trial that was
        killed is repeated once.
        """
        if outcome.status is None:  # it stays open, which the next run sees
            return "ended"
        if outcome.status != 0:
            return self._tell_failure(trial, values, outcome)
        search = self._search
        kept = outcome.rows[outcome.kept - 1] if outcome.kept else outcome.rows[-1]
        attributes = {SIZE: outcome.parameters, LOSS: kept["val_loss"]}
        self._study.tell(trial, None if outcome.pruned else kept[search.objective], attributes)
        score = report.format_value(search, kept[search.objective])
        how = f"ended early after epoch {len(outcome.rows)}" if outcome.pruned else f"epoch {outcome.kept}"
        print(f"trial {trial.number}: {search.objective} {score}, {how}", flush=True)
        return "pruned" if outcome.pruned else "complete"

    def _tell_failure(self, trial: Trial, values: Mapping[str, Any], outcome: TrialOutcome) -> str:
        status, reason, again = outcome.status, outcome.reason, trial.user_attrs.get(AGAIN, 0)
        hopeless = status in (ConfigurationError.status, DivergedError.status) or OUT_OF_MEMORY.search(reason)
        short = status == ServiceError.status and " of memory" in reason  # others have it
        passing = status > 128 or status == 1 or short
        if (values == self._search.own and (hopeless or again)) or not (hopeless or passing):
            raise TrialFailedError(trial.number, status, reason)
        print(f"trial {trial.number}: {reason}", flush=True)
        if hopeless or again:
            self._study.tell(trial, None, {WHY: reason})
        else:
            with self._asking:
                self._study.repeat(trial, reason)
        return "failed"


def _report_crash(before: dict) -> None:
    print(
        f"the last {before['what']} did not end: process {before['pid']} on {before['host']} died; going on from there"
    )
