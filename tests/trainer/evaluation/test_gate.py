"""What the rules of the gate decide, and which of them prepare refuses."""

from __future__ import annotations

from typing import Any

import pytest
from finetune_api.evaluation_summary import MetricComparison
from finetune_api.finetunejob import FineTuneJobSpec, GateRule
from finetune_trainer.evaluation.gate import apply_rule
from finetune_trainer.evaluation.requirements import check_gate
from finetune_trainer.runtime.errors import UserError

from tests.trainer.prepare_world import World
from tests.trainer.tiny import CONTEXT

LOSS = MetricComparison(
    metric="loss",
    value=2.0,
    tuned=1.8,
    improvement=0.2,
    low=0.1,
    high=0.3,
    relative_percent=10,
    relative_low_percent=5,
    relative_high_percent=15,
)
MATCH = MetricComparison(
    metric="exactMatch", value=0.2, tuned=0.3, improvement=0.1, low=-0.02, high=0.22
)


@pytest.mark.parametrize(
    ("rule", "unit", "passed"),
    [
        ({"metric": "loss", "minRelativeImprovement": "5%"}, "Percent", True),
        ({"metric": "loss", "minRelativeImprovement": "6%"}, "Percent", False),
        (
            {"metric": "loss", "minRelativeImprovement": "10%", "statistic": "Estimate"},
            "Percent",
            True,
        ),
        ({"metric": "loss", "minImprovement": 0.1}, "Nats", True),
        ({"metric": "loss", "minImprovement": 0.11}, "Nats", False),
        ({"metric": "exactMatch", "minImprovement": 0}, "Fraction", False),
        ({"metric": "exactMatch", "minImprovement": -0.05}, "Fraction", True),
        (
            {"metric": "exactMatch", "minImprovement": 0.1, "statistic": "Estimate"},
            "Fraction",
            True,
        ),
        ({"metric": "rougeL", "minImprovement": -1}, "Fraction", False),
    ],
)
def test_a_rule_compares_in_its_unit(rule: dict[str, Any], unit: str, passed: bool) -> None:
    outcome = apply_rule(GateRule.model_validate(rule), [LOSS, MATCH])
    assert (outcome.unit, outcome.passed) == (unit, passed)


def test_the_outcome_has_the_numbers() -> None:
    rule = GateRule(metric="loss", min_relative_improvement="2.5%")
    outcome = apply_rule(rule, [LOSS])
    assert (outcome.required, outcome.measured, outcome.low, outcome.high) == (2.5, 10, 5, 15)
    missing = apply_rule(rule, [])
    assert (missing.measured, missing.passed) == (None, False)


def test_a_rule_compares_with_its_baseline() -> None:
    few_shot = MATCH.model_copy(update={"baseline": "few-shot", "low": 0.01})
    rule = {"metric": "exactMatch", "minImprovement": 0}
    for baseline, passed in ((None, False), ("few-shot", True)):
        outcome = apply_rule(
            GateRule.model_validate({**rule, "baseline": baseline}), [MATCH, few_shot]
        )
        assert (outcome.baseline, outcome.passed) == (baseline or "base", passed)


@pytest.mark.parametrize(
    ("metric", "rows", "settings", "field"),
    [
        ("loss", 7, {}, "maxSamples"),
        ("loss", 100, {"maxSamples": 7}, "maxSamples"),
        ("exactMatch", 100, {"generations": 7}, "generations"),
        ("loss", 8, {"generations": 3}, None),
        ("exactMatch", 8, {"maxSamples": 3}, None),
    ],
)
def test_a_bound_of_few_rows_is_refused(
    metric: str, rows: int, settings: dict[str, Any], field: str | None
) -> None:
    def job(statistic: str) -> FineTuneJobSpec:
        gate = [{"metric": metric, "minImprovement": 0.1, "statistic": statistic}]
        return FineTuneJobSpec.model_validate(
            {
                "model": {"uri": "pvc://models/tiny"},
                "dataset": {"train": [{"uri": "pvc://data/rows.jsonl"}]},
                "evaluation": {"gate": gate, **settings},
            }
        )

    check_gate(job("Estimate"), rows)
    if field is None:
        check_gate(job("Bound"), rows)
        return
    with pytest.raises(UserError, match=r"evaluation.gate\[0\]") as raised:
        check_gate(job("Bound"), rows)
    assert raised.value.failure.reason == "TooFewHeldOutRows"
    assert f"evaluation.{field}" in str(raised.value.failure.remedy)


def test_prompts_without_space_for_an_answer_are_found_before_training(world: World) -> None:
    gate = [{"metric": "exactMatch", "minImprovement": 0, "statistic": "Estimate"}]
    failure = world.fails(evaluation={"gate": gate, "maxNewTokens": CONTEXT})
    assert failure.reason == "TooFewHeldOutRows"
    assert failure.message.startswith("Only 0 of ")
    assert f"an answer of {CONTEXT} tokens" in failure.message


def test_preferences_need_answers_of_both_kinds(world: World) -> None:
    rows = [{"prompt": f"What is {n}?", "completion": f"{n}.", "label": True} for n in range(20)]
    world.rows("validation.jsonl", rows[:8])
    world.rows("rows.jsonl", [*rows[8:], {**rows[0], "completion": "Ask.", "label": False}])
    failure = world.fails(
        objective="KTO",
        dataset={"validation": {"uri": "pvc://data/validation.jsonl"}},
        evaluation={"gate": [{"metric": "preferenceAccuracy", "minImprovement": 0}]},
    )
    assert failure.reason == "MetricUnsupported"
    assert "all 8 held-out answers that are evaluated are desirable" in failure.message
