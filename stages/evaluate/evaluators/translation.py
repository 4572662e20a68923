"""Evaluates a translation model."""

import time
from typing import Any

import numpy as np
import pandas as pd
from sacrebleu.metrics import CHRF

from convoy.data.shards import Shards, spread
from convoy.machine.progress import track
from convoy.model import scores
from convoy.model.beam_search import Translation
from convoy.model.predictor import Predictor
from stages.evaluate.evaluators.changed import share
from stages.evaluate.evaluators.slices import parts, slices
from stages.evaluate.results import Results

RESAMPLES = 1000  # of the test split, for the intervals of BLEU and chrF
SAMPLES = 100  # that are listed


def assess(predictor: Predictor, test: Shards, val: Shards, manifest: pd.DataFrame, title: str) -> Results:
    """Returns the scores of a translation model.

    Tables: samples (source, target and translation side by side, from the worst to the best) and slices (exact match by
    length and source). Plot: attention, where each word of some translations looked. ``title`` is that of the progress
    shown; the other arguments are those of ``classification.assess``.
    """
    started = time.monotonic()
    translations = _translate(predictor, test, title)
    seconds = time.monotonic() - started  # not among the metrics, which are to be the same each time
    print(f"{title}: {len(test):,} sentences translated in {seconds:.1f} s, {len(test) / seconds:.1f} sentences/s")
    sources, expected = test.column("source"), test.column("target")
    answers = predictor.written(translations)
    metrics = measure(expected, answers, sources)
    val_answers = predictor.written(_translate(predictor, val, title))
    metrics["val_bleu"] = scores.main("bleu", val.column("target"), val_answers)
    metrics["val_loss"] = predictor.loss(val)
    table = manifest.assign(source=sources, target=expected, predicted=answers)
    table["correct"] = answers == expected
    table["chrf"] = scores.of_examples("bleu", expected, answers)
    table["log_probability"] = [one.score for one in translations]
    divided = parts(manifest.assign(characters=[len(source) for source in sources]))
    ordered = table.sort_values("chrf", kind="stable")
    columns = ["source", "target", "predicted", "chrf", "path"]
    shown = ordered.index[[len(table) // 10, len(table) // 2, len(table) - 1]]  # a bad, a usual, the best one
    looked = [_looked(predictor, sources[number], translations[number]) for number in shown]
    return Results(
        metrics,
        table.join(divided.add_prefix(scores.PART)),
        tables={
            "slices": slices(divided, table["correct"].to_numpy()),
            "samples": ordered.iloc[spread(len(table), SAMPLES)][columns],
        },
        plots={"attention": (looked,)},
    )


def measure(expected: np.ndarray, answers: np.ndarray, sources: np.ndarray) -> dict[str, Any]:
    """Returns the metrics of translations; all arguments are texts, objects of shape (n,)."""
    bleu = scores.bleu()
    total = bleu.corpus_score(answers.tolist(), [expected.tolist()], n_bootstrap=RESAMPLES)
    chrf = CHRF().corpus_score(answers.tolist(), [expected.tolist()], n_bootstrap=RESAMPLES)
    exact = share(answers == expected)
    return {
        "metric": "bleu",
        "bleu": total.score,
        # Koehn 2004, "Statistical Significance Tests for Machine Translation Evaluation".
        "bleu_low": total._mean - total._ci,
        "bleu_high": total._mean + total._ci,
        "bleu_signature": str(bleu.get_signature()),
        "chrf": chrf.score,
        "chrf_low": float(chrf._mean - chrf._ci),
        "chrf_high": float(chrf._mean + chrf._ci),
        "exact_match": exact["accuracy"],
        "exact_match_low": exact["low"],
        "exact_match_high": exact["high"],
        "baseline": scores.main("bleu", expected, sources),  # the source, as it is
        "examples": len(expected),
    }


def _translate(predictor: Predictor, examples: Shards, title: str) -> list[Translation]:
    found: dict[int, Translation] = {}
    for number, translation in track(predictor.translations(examples), title, "sentences", len(examples)):
        found[number] = translation
    return [found[number] for number in range(len(examples))]


def _looked(predictor: Predictor, source: str, translation: Translation) -> tuple[list[str], list[str], np.ndarray]:
    """Returns the source's tokens, the translation's, and where these looked, (translation, source)."""
    known, length = predictor.vocabularies, predictor.takes["length"]
    read = known["source"].shown(known["source"].encode([source], length)[0])
    return read, [*known["target"].shown(translation.tokens), "end"], translation.attention
