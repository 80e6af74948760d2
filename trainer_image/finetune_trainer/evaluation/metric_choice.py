"""Which metrics an evaluation has: those of the job, or those that its held-out answers allow."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from finetune_api.finetunejob import FineTuneJobSpec
from finetune_api.metrics import METRICS, MetricName

from finetune_trainer.metrics.json_fields import parse_fields
from finetune_trainer.metrics.normalization import NORMALIZATIONS
from finetune_trainer.runtime.errors import UserError

CLASS_METRICS: tuple[MetricName, ...] = ("accuracy", "macroF1", "microF1")
MAX_LABELS, MAX_LABEL_LENGTH, ROWS_PER_LABEL = 20, 40, 3
"""Answers are labels if there are no more than 20, of 40 characters, each given three times on
average."""
MAX_CLASSES = 100
"""Most different answers that can be classes where the job requests a metric of classes."""


@dataclass(frozen=True)
class MetricChoice:
    """What is measured, in the order in which it is reported."""

    metrics: tuple[MetricName, ...]
    labels: tuple[str, ...] = ()
    """Classes of accuracy and F1; empty where neither is measured."""


def choose_metrics(spec: FineTuneJobSpec, references: Sequence[str]) -> MetricChoice:
    """The metrics of the job, with those of its gate; `references` are the held-out answers of SFT.

    Raises UserError MetricUnsupported where the answers cannot have one of them.
    """
    evaluation = spec.evaluation
    normalise = NORMALIZATIONS[evaluation.normalization]
    labels = tuple(evaluation.labels) or find_labels(references, normalise)
    chosen = list(evaluation.metrics) or list(_list_defaults(spec, references, labels))
    chosen += [rule.metric for rule in evaluation.gate]
    metrics = tuple(dict.fromkeys(chosen))
    if "jsonFields" in metrics:
        _check_json(references)
    if not set(CLASS_METRICS) & set(metrics):
        return MetricChoice(metrics)
    labels = labels or find_distinct(references, normalise)
    _check_labels(labels, references, normalise)
    if "macroF1" in metrics:
        _check_classes(labels, references, normalise)
    return MetricChoice(metrics, labels)


def find_labels(references: Sequence[str], normalise: Callable[[str], str]) -> tuple[str, ...]:
    """The different answers; none where they are not a few labels."""
    found = find_distinct(references, normalise)
    is_few = 2 <= len(found) <= MAX_LABELS and len(references) >= ROWS_PER_LABEL * len(found)
    is_short = all(
        len(each) <= MAX_LABEL_LENGTH and "\n" not in each and normalise(each) for each in found
    )
    return found if is_few and is_short else ()


def find_distinct(texts: Sequence[str], normalise: Callable[[str], str]) -> tuple[str, ...]:
    """The texts that differ after normalisation, in alphabetical order."""
    # Of several spellings the first in the alphabet is kept, whatever the order of the rows.
    return tuple(sorted({normalise(text): text for text in sorted(texts, reverse=True)}.values()))


def _list_defaults(
    spec: FineTuneJobSpec, references: Sequence[str], labels: Sequence[str]
) -> Iterator[MetricName]:
    for name in ("loss", "preferenceAccuracy", "reward"):
        if spec.objective in METRICS[name].objectives:
            yield name
    if spec.objective != "SFT":
        return
    if labels:
        yield from ("accuracy", "macroF1")
    elif references and all(parse_fields(each) for each in references):
        yield from ("jsonFields", "exactMatch")
    else:
        yield from ("rougeL", "exactMatch")


def _check_json(references: Sequence[str]) -> None:
    broken = next((each for each in references if parse_fields(each) is None), None)
    if broken is not None:
        raise _unsupported(
            "jsonFields",
            f"the held-out answer {broken[:60]!r} is no JSON object",
            "Correct the answer, or choose other metrics.",
        )


def _check_labels(
    labels: Sequence[str], references: Sequence[str], normalise: Callable[[str], str]
) -> None:
    known = {normalise(label) for label in labels}
    if len(known) < len(labels):
        raise _unsupported(
            "accuracy and F1",
            "two labels of evaluation.labels are the same after evaluation.normalization",
            "Leave one of them out, or set evaluation.normalization to None.",
        )
    if "" in known:
        empty = next(label for label in labels if not normalise(label))
        raise _unsupported(
            "accuracy and F1",
            f"of the label {empty!r} evaluation.normalization leaves nothing, so that an empty "
            "answer would be right",
            "Set evaluation.normalization to Whitespace or None, or rename the label in the data.",
        )
    if len(known) > MAX_CLASSES:
        raise _unsupported(
            "accuracy and F1",
            f"the held-out answers are {len(known)} different texts, and no labels",
            "Use exactMatch, rougeL or chrF.",
        )
    other = next((each for each in references if normalise(each) not in known), None)
    if other is not None:
        raise _unsupported(
            "accuracy and F1",
            f"evaluation.labels lacks the held-out answer {other[:60]!r}",
            "Add it, or correct the row.",
        )


def _check_classes(
    labels: Sequence[str], references: Sequence[str], normalise: Callable[[str], str]
) -> None:
    found = {normalise(reference) for reference in references}
    missing = [label for label in labels if normalise(label) not in found]
    if missing:
        raise _unsupported(
            "macroF1",
            f"no held-out answer is {missing[0]!r} of evaluation.labels, so the F1 of that class "
            "is not known",
            "Correct the label, hold out rows of it (dataset.holdout, dataset.validation), leave "
            "it out, or choose evaluation.metrics without macroF1.",
        )


def _unsupported(metrics: str, why: str, remedy: str) -> UserError:
    return UserError("MetricUnsupported", f"The data cannot have {metrics}: {why}.", remedy)
