"""What the status shows of an evaluation, for every objective."""

from typing import Any

import pytest
from finetune_api.evaluation_summary import (
    EvaluationSummary,
    GateOutcome,
    MetricComparison,
    PromptComparison,
)
from finetune_api.gate_report import gate_failure, gate_table
from finetune_api.metrics import MetricName
from finetune_operator.jobs.stages.evaluate import format_comparison

from tests.unit.jobs.world import PROBE, World, job_manifest

LOSS = MetricComparison(
    metric="loss",
    value=0.693,
    tuned=0.52,
    improvement=0.173,
    low=0.139,
    high=0.208,
    relative_percent=25.0,
    relative_low_percent=20.0,
    relative_high_percent=30.0,
)
PREFERENCES = MetricComparison(
    metric="preferenceAccuracy", value=0.5, tuned=0.71, improvement=0.21, low=0.1, high=0.32
)
REWARD = MetricComparison(
    metric="reward", value=0.125, tuned=0.5, improvement=0.375, low=0.2, high=0.55
)
EXACT_MATCH = MetricComparison(
    metric="exactMatch", value=0.1, tuned=0.4, improvement=0.3, low=0.2, high=0.4
)
FEW = "exact match of 64 items has a standard error of up to 6.3 points"


def test_a_loss_is_shown_with_its_interval() -> None:
    assert format_comparison(EvaluationSummary(comparisons=[LOSS, EXACT_MATCH])) == (
        "held-out loss 0.693 -> 0.520, 25.0 % better (95 % interval 20.0 to 30.0 %)"
    )


def test_preferences_are_shown_next_to_the_loss() -> None:
    summary = EvaluationSummary(comparisons=[LOSS, PREFERENCES])
    assert format_comparison(summary).endswith(
        "; better answer preferred 0.500 -> 0.710 (95 % interval of the difference 0.100 to 0.320)"
    )


def test_reinforcement_learning_has_rewards_and_no_loss() -> None:
    assert format_comparison(EvaluationSummary(comparisons=[REWARD])).startswith(
        "mean reward 0.125 -> 0.500 (95 % interval"
    )


@pytest.mark.parametrize(("is_beaten", "verdict"), [(True, ""), (False, "not shown to be ")])
def test_the_best_prompt_is_part_of_the_message(is_beaten: bool, verdict: str) -> None:
    few_shot = EXACT_MATCH.model_copy(update={"baseline": "few-shot"})
    best = PromptComparison(metric="exactMatch", baseline="few-shot", is_beaten=is_beaten)
    summary = EvaluationSummary(comparisons=[LOSS, EXACT_MATCH, few_shot], best_prompt=best)
    message = format_comparison(summary)
    assert message.endswith(f"; {verdict}better than the best prompt, few-shot")


def test_a_warning_of_few_answers_is_part_of_the_message() -> None:
    summary = EvaluationSummary(comparisons=[LOSS, EXACT_MATCH], warnings=[FEW])
    assert format_comparison(summary).endswith(f"; {FEW}")


def test_a_failed_gate_is_a_table_of_every_rule() -> None:
    rules: list[dict[str, Any]] = [
        {"metric": "loss", "unit": "Percent", "required": 5, "measured": 3.14, "passed": False},
        {"metric": "exactMatch", "unit": "Fraction", "required": -0.02, "passed": False},
        {"metric": "reward", "unit": "Reward", "required": 1, "measured": 2, "passed": True},
    ]
    intervals: list[dict[str, Any]] = [
        {"low": 1.25, "high": 5.0},
        {"baseline": "few-shot"},
        {"low": 0.5, "high": 3.5, "statistic": "Estimate"},
    ]
    gate = [GateOutcome(**rule, **more) for rule, more in zip(rules, intervals, strict=True)]
    assert gate_table(gate).splitlines() == [
        "metric      baseline  required            measured  95 % interval     result",
        "loss        base      bound of 5.0 %      3.1 %     1.2 to 5.0 %      failed",
        "exactMatch  few-shot  bound of -0.0200    nothing                     failed",
        "reward      base      estimate of 1.0000  2.0000    0.5000 to 3.5000  passed",
    ]
    failure = gate_failure(EvaluationSummary(gate=gate, passed=False))
    assert failure is not None
    assert failure.message.startswith("the tuned model fails 2 of 3 rules of evaluation.gate (")
    assert gate_failure(EvaluationSummary()) is None


@pytest.mark.parametrize(
    ("metric", "measured", "field"),
    [
        ("exactMatch", 0.1, "evaluation.generations"),
        ("loss", 0.1, "evaluation.maxSamples"),
        ("loss", 0.04, None),
    ],
)
def test_a_rule_that_only_its_interval_fails_asks_for_more_rows(
    metric: MetricName, measured: float, field: str | None
) -> None:
    outcome = GateOutcome(
        metric=metric, unit="Fraction", required=0.05, measured=measured, low=0.01, passed=False
    )
    failure = gate_failure(EvaluationSummary(gate=[outcome], passed=False))
    assert failure is not None
    expected = f"chance may explain the difference: hold out more rows and raise {field}."
    assert (failure.remedy or "").endswith(expected if field else "or lower evaluation.gate.")


def test_a_job_without_a_loss_ends_well() -> None:
    grpo = {"objective": "GRPO", "grpo": {"rewards": [{"type": "length"}]}, "serve": None}
    world = World(job_manifest(**grpo))
    world.run_until("evaluate")
    world.add_pods("glossary-evaluate-1")
    summary = {"comparisons": [REWARD.to_wire()], "generations": 8, "passed": True}
    world.succeed("evaluate", evaluation=summary)
    world.run_stage("export")
    assert world.status["phase"] == "Succeeded"
    assert world.status["message"].startswith("mean reward 0.125 -> 0.500")


@pytest.mark.parametrize("change", [{"maxTokens": 100_000}, {"messages": []}])
def test_a_probe_that_no_endpoint_could_ask_is_left_out(change: dict[str, Any]) -> None:
    world = World()
    world.run_until("evaluate")
    world.add_pods("glossary-evaluate-1")
    world.settle()
    world.succeed("evaluate", probe={**PROBE, **change})
    world.settle()
    assert "probe" not in world.status
    assert "glossary-export-1" in world.names("Job")
