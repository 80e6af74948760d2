"""Which metrics an evaluation has by its held-out answers, and what prepare refuses."""

from __future__ import annotations

from typing import Any

import pytest
from finetune_api.finetunejob import FineTuneJobSpec
from finetune_trainer.evaluation.metric_choice import MetricChoice, choose_metrics
from finetune_trainer.runtime.errors import UserError

from tests.trainer.prepare_world import World

TEAMS = ["Billing", "billing.", "outage", "Outage", "outage", "billing"]
OBJECTS = ['{"team": "billing"}', '{"team": "outage", "urgent": true}']
SENTENCES = ["A byte has eight bits.", "A word has two bytes."]


def job(objective: str = "SFT", **evaluation: Any) -> FineTuneJobSpec:
    return FineTuneJobSpec.model_validate(
        {
            "model": {"uri": "pvc://models/tiny"},
            "dataset": {"train": [{"uri": "pvc://data/rows.jsonl"}]},
            "objective": objective,
            "evaluation": evaluation,
        }
    )


@pytest.mark.parametrize(
    ("references", "metrics", "labels"),
    [
        (TEAMS, ("loss", "accuracy", "macroF1"), ("Billing", "Outage")),
        # Twice each may be chance.
        (["yes", "no"] * 2, ("loss", "rougeL", "exactMatch"), ()),
        (["yes"] * 9, ("loss", "rougeL", "exactMatch"), ()),
        # An empty answer would be the label "-".
        (["+", "-"] * 9, ("loss", "rougeL", "exactMatch"), ()),
        (OBJECTS, ("loss", "jsonFields", "exactMatch"), ()),
        ([*OBJECTS, "none"], ("loss", "rougeL", "exactMatch"), ()),
        (SENTENCES * 9, ("loss", "accuracy", "macroF1"), tuple(sorted(SENTENCES))),
        ([f"{text} {text}" for text in SENTENCES * 9], ("loss", "rougeL", "exactMatch"), ()),
    ],
)
def test_answers_decide_the_metrics(
    references: list[str], metrics: tuple[str, ...], labels: tuple[str, ...]
) -> None:
    assert choose_metrics(job(), references) == MetricChoice(metrics, labels)  # type: ignore[arg-type]


def test_other_objectives_have_one_metric_or_two() -> None:
    assert choose_metrics(job("Completion"), []).metrics == ("loss",)
    assert choose_metrics(job("DPO"), []).metrics == ("loss", "preferenceAccuracy")
    assert choose_metrics(job("GRPO"), []).metrics == ("reward",)


def test_the_job_decides_the_metrics_and_their_order() -> None:
    chosen = choose_metrics(job(metrics=["chrF", "perplexity"]), TEAMS)
    assert chosen == MetricChoice(("chrF", "perplexity"))


def test_metrics_of_the_gate_are_measured() -> None:
    gate = [{"metric": "bleu", "minImprovement": 0.1}, {"metric": "loss", "minImprovement": 0}]
    assert choose_metrics(job(gate=gate), SENTENCES).metrics == (
        "loss",
        "rougeL",
        "exactMatch",
        "bleu",
    )


def test_labels_of_the_job_keep_their_order() -> None:
    chosen = choose_metrics(job(labels=["outage", "billing"]), TEAMS)
    assert chosen.labels == ("outage", "billing")
    assert chosen.metrics == ("loss", "accuracy", "macroF1")


def test_a_class_that_is_never_held_out_can_be_a_wrong_answer() -> None:
    labels = ["sales", "outage", "billing"]
    chosen = choose_metrics(job(labels=labels, metrics=["accuracy", "microF1"]), TEAMS)
    assert chosen.labels == tuple(labels)


def test_requested_classes_are_the_different_answers() -> None:
    chosen = choose_metrics(job(metrics=["microF1"]), ["b", "a", "B!"])
    assert chosen.labels == ("B!", "a")


@pytest.mark.parametrize(
    ("evaluation", "references", "message"),
    [
        ({"metrics": ["jsonFields"]}, [*OBJECTS, "a word"], "'a word' is no JSON object"),
        ({"metrics": ["accuracy"]}, [f"text {n}" for n in range(101)], "101 different texts"),
        ({"labels": ["billing"]}, TEAMS, "evaluation.labels lacks the held-out answer 'outage'"),
        ({"labels": ["billing", "outage", "sales"]}, TEAMS, "no held-out answer is 'sales'"),
        ({"labels": ["+", "-"]}, ["+", "-"], "of the label '-' evaluation.normalization leaves"),
        ({"labels": ["a", "A"]}, ["a"], "two labels of evaluation.labels are the same"),
        (
            {"gate": [{"metric": "jsonFields", "minImprovement": 0}]},
            SENTENCES,
            "is no JSON object",
        ),
    ],
)
def test_a_metric_that_the_answers_cannot_have_is_refused(
    evaluation: dict[str, Any], references: list[str], message: str
) -> None:
    with pytest.raises(UserError, match=message) as raised:
        choose_metrics(job(**evaluation), references)
    assert raised.value.failure.reason == "MetricUnsupported"


def test_prepare_refuses_it_before_training(world: World) -> None:
    failure = world.fails(evaluation={"metrics": ["loss", "jsonFields"]})
    assert failure.reason == "MetricUnsupported"
