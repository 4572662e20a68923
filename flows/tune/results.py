"""The end of a search: writes the best values into params.yaml, and the page."""

import json
from pathlib import Path

from filelock import FileLock

from convoy import params
from convoy.data.shards import Shards
from convoy.tracking import runs
from flows.tune import report
from flows.tune.search import FOLDER, has_same_basis, read
from flows.tune.study import Study, TrialResult
from stages.search_space import Search


def finish(search: Search, study: Study, folder: Path) -> bool:
    """Writes the best values into params.yaml if they are better, and the page; prints both.

    Returns:
        Whether the entry's own values were tried to the end; otherwise nothing is written.
    """
    results = study.collect_results()
    whole = [one for one in results if one.state == "complete"]
    own = next((one for one in whole if one.values == search.own), None)
    if own is None:
        print("the values that the entry has were not tried to the end: nothing is written. The same command goes on.")
        return False
    best = min(whole, key=lambda one: _rank(search, one))
    written = _rank(search, best)[:2] < _rank(search, own)[:2] and _write(search, best)
    page = folder / "report.html"
    examples = len(Shards(Path("data/ingest", search.dataset, "val"), verify=False))
    report.write(page, search, results, best, own, study.compute_importances(), written, examples)
    runs.log_file(page)
    runs.log_metrics({search.objective: best.value, f"{search.objective}_of_entry": own.value})
    _print(search, results, best, own, written)
    print(f"page: {page}")
    return True


def _print(search: Search, results: list[TrialResult], best: TrialResult, own: TrialResult, written: bool) -> None:
    pruned = sum(one.state == "pruned" for one in results)
    print(
        f"{len(results)} trials, {pruned} ended early; {search.objective}: best "
        f"{report.format_value(search, best.value)} (trial {best.number}), with the values that the entry had "
        f"{report.format_value(search, own.value)}"
    )
    for place, value in search.changes(best.values).items():
        print(f"  {'.'.join(place)}: {json.dumps(value)}")
    print("params.yaml has them now; `dvc repro` trains with them" if written else "params.yaml stays as it is")
    others = [name for name in params.models(search.dataset) if name != search.model]
    if written and others and any(place[0] == "augment" for place in search.changes(best.values)):
        print(f"augment.{search.dataset} is also that of {', '.join(others)}: they will be trained again")


def _rank(search: Search, one: TrialResult) -> tuple[float, float, int]:
    """Returns a key that is smaller for better trials: by the objective, then the loss, then the earlier."""
    return search.signed(one.value), 0.0 if "label_smoothing" in search.ranges else one.loss, one.number


def _write(search: Search, best: TrialResult) -> bool:
    """Writes the values of a trial into params.yaml unless it was edited meanwhile; returns whether it did."""
    with FileLock(FOLDER / ".params.lock"):
        if not has_same_basis(read(search.model), search):
            print("params.yaml says something else than when the search began: nothing is written.")
            return False
        params.write(search.changes(best.values))
    return True
