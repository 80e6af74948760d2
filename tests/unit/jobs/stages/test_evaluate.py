"""What the status shows of an evaluation, for every objective."""

from typing import Any

import pytest
from finetune_api.evaluation_summary import (
    EvaluationSummary,
    GateOutcome,
    LossComparison,
    MetricPair,
)
from finetune_operator.jobs.stages.evaluate import format_comparison, gate_failure

from tests.unit.jobs.world import PROBE, World, job_manifest

LOSS = LossComparison(
    base=0.693, tuned=0.52, improvement_percent=25.0, low_percent=20.0, high_percent=30.0, tokens=9
)


def test_a_loss_is_shown_with_its_interval() -> None:
    assert format_comparison(EvaluationSummary(loss=LOSS)) == (
        "held-out loss 0.693 -> 0.520, 25.0 % better (95 % interval 20.0 to 30.0 %)"
    )


def test_preferences_are_shown_next_to_the_loss() -> None:
    summary = EvaluationSummary(loss=LOSS, preference_accuracy=MetricPair(base=0.5, tuned=0.71))
    assert format_comparison(summary).endswith("better answer preferred 50.0 % -> 71.0 %")


def test_reinforcement_learning_tells_rewards_and_no_loss() -> None:
    summary = EvaluationSummary(reward=MetricPair(base=0.125, tuned=0.5), generations=8)
    assert format_comparison(summary) == "mean reward 0.125 -> 0.500"
    rule = GateOutcome(metric="reward", required="60%", measured="37.5%", passed=False)
    failed = summary.model_copy(update={"gate": [rule], "passed": False})
    assert "reward improved by 37.5%, not 60%" in gate_failure(failed).message


def test_a_job_without_a_loss_ends_well() -> None:
    grpo = {"objective": "GRPO", "grpo": {"rewards": [{"type": "length"}]}, "serve": None}
    world = World(job_manifest(**grpo))
    world.run_until("evaluate")
    world.add_pods("glossary-evaluate-1")
    summary = {"reward": {"base": 0.1, "tuned": 0.4}, "generations": 8, "passed": True}
    world.succeed("evaluate", evaluation=summary)
    world.run_stage("export")
    assert world.status["phase"] == "Succeeded"
    assert world.status["message"].startswith("mean reward 0.100 -> 0.400; artifact at pvc://")


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
