"""Metrics of answers with a reference, for the tuned model and every baseline."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from finetune_api.evaluation import Normalization
from finetune_api.metrics import MetricName

from finetune_trainer.evaluation.metric_choice import CLASS_METRICS, MetricChoice
from finetune_trainer.metrics.classification import Classified, classify
from finetune_trainer.metrics.json_fields import match_fields, parse_fields, score_fields
from finetune_trainer.metrics.ngrams import bleu, chrf
from finetune_trainer.metrics.normalization import NORMALIZATIONS, is_same_text
from finetune_trainer.metrics.rouge import rouge_l
from finetune_trainer.metrics.statistics import Correctness, Statistic, SumStatistic, mean_of

Texts = Sequence[str]
Score = Callable[[Texts, Texts], Statistic]
"""A metric of answers, from answers and references."""


def score_texts(
    answers: Mapping[str, Texts],
    references: Texts,
    choice: MetricChoice,
    normalization: Normalization,
) -> dict[MetricName, dict[str, Statistic]]:
    """Every chosen metric of answers, by the name of who gave them; of thoughts nothing counts."""
    normalise = NORMALIZATIONS[normalization]

    def classes(metric: MetricName) -> Score:
        return lambda given, expected: _of_classes(
            classify(given, expected, choice.labels, normalise), metric
        )

    scores: dict[MetricName, Score] = {
        "exactMatch": lambda given, expected: Correctness(
            np.array([is_same_text(*p, normalization) for p in zip(given, expected, strict=True)])
        ),
        "rougeL": lambda given, expected: mean_of(
            np.array([rouge_l(*pair) for pair in zip(given, expected, strict=True)])
        ),
        "jsonFields": lambda given, expected: mean_of(
            np.array(
                [
                    score_fields(parse_fields(answer), parse_fields(reference) or {}, normalise)
                    for answer, reference in zip(given, expected, strict=True)
                ]
            )
        ),
        "bleu": bleu,
        "chrF": chrf,
        **{metric: classes(metric) for metric in CLASS_METRICS},
    }
    return {
        metric: _score_all(scores[metric], answers, references)
        for metric in choice.metrics
        if metric in scores
    }


def describe_answers(
    answers: Mapping[str, Texts],
    references: Texts,
    choice: MetricChoice,
    normalization: Normalization,
) -> dict[str, Any]:
    """The confusion tables and figures of classes, and how often each field of JSON is right, for
    the report."""
    normalise = NORMALIZATIONS[normalization]
    details: dict[str, Any] = {}
    if answers and choice.labels:
        classified = {
            name: classify(given, references, choice.labels, normalise)
            for name, given in answers.items()
        }
        details["classes"] = {
            "labels": list(choice.labels),
            # A row for each expected label; the last column counts answers that are no label.
            "confusion": {name: each.confusion().tolist() for name, each in classified.items()},
            "byClass": {name: each.by_class() for name, each in classified.items()},
        }
    if "jsonFields" in choice.metrics:
        details["fields"] = {
            name: _count_fields(given, references, normalise) for name, given in answers.items()
        }
    return details


def _score_all(
    score: Score, answers: Mapping[str, Texts], references: Texts
) -> dict[str, Statistic]:
    """The metric of all; with the extremes of an average item, if it follows from sums."""
    found = {name: score(given, references) for name, given in answers.items()}
    sums = {name: each for name, each in found.items() if isinstance(each, SumStatistic)}
    if not sums:
        return found
    right, wrong = score(references, references), score([""] * len(references), references)
    assert isinstance(right, SumStatistic)
    assert isinstance(wrong, SumStatistic)
    extremes = np.stack([right.parts.mean(axis=0), wrong.parts.mean(axis=0)])
    return {name: replace(each, extremes=extremes) for name, each in sums.items()}


def _of_classes(classified: Classified, metric: MetricName) -> Statistic:
    if metric == "accuracy":
        return classified.accuracy()
    return classified.macro_f1() if metric == "macroF1" else classified.micro_f1()


def _count_fields(
    answers: Texts, references: Texts, normalise: Callable[[str], str]
) -> dict[str, dict[str, int]]:
    """By path how often a field is in answer or reference, and how often both have its value."""
    counts: dict[str, dict[str, int]] = {}
    for answer, reference in zip(answers, references, strict=True):
        matches = match_fields(parse_fields(answer), parse_fields(reference) or {}, normalise)
        for path, is_right in matches.items():
            count = counts.setdefault(path, {"answers": 0, "right": 0})
            count["answers"] += 1
            count["right"] += is_right
    return counts
