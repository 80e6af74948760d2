"""The API server rejects metrics, baselines and gates that cannot be evaluated."""

from __future__ import annotations

from typing import Any

import pytest
from finetune_api.combinations import PREFERENCE_OBJECTIVES

from tests.api.client import Api, ApiError
from tests.api.test_cel import job

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "a wrong gate": (
        {"evaluation__gate": [{"metric": "loss", "minRelativeImprovement": "2"}]},
        "must be a percentage such as 2% or -0.5%",
    ),
    "an unknown metric": (
        {"evaluation__gate": [{"metric": "wit", "minImprovement": 0.02}]},
        "spec.evaluation.gate[0].metric: Unsupported",
    ),
    "a gate without a minimum": (
        {"evaluation__gate": [{"metric": "loss"}]},
        "has either minImprovement or minRelativeImprovement",
    ),
    "a gate with two minima": (
        {
            "evaluation__gate": [
                {"metric": "loss", "minImprovement": 0, "minRelativeImprovement": "2%"}
            ]
        },
        "has either minImprovement or minRelativeImprovement",
    ),
    "an improvement relative to what may be 0": (
        {"evaluation__gate": [{"metric": "rougeL", "minRelativeImprovement": "2%"}]},
        "defined only for metrics that are always above 0",
    ),
    "a gate on a metric that is left out": (
        {
            "evaluation__metrics": ["loss", "chrF"],
            "evaluation__gate": [{"metric": "rougeL", "minImprovement": 0}],
        },
        "evaluation.gate has a metric that evaluation.metrics leaves out",
    ),
    "a metric of another objective": (
        {"evaluation__metrics": ["loss", "reward"]},
        "evaluation.metrics has a metric that the objective does not measure",
    ),
    "labels of an objective without answers": (
        {"objective": "DPO", "evaluation__labels": ["good", "bad"]},
        "only answers of SFT are compared with labels",
    ),
    "a label twice": ({"evaluation__labels": ["good", "bad", "good"]}, "Duplicate value"),
    "a baseline without a prompt": (
        {"evaluation__baselines": [{"name": "nothing"}]},
        "give systemPrompt, examples or both",
    ),
    "a baseline with the name of the base": (
        {"evaluation__baselines": [{"name": "base", "examples": 2}]},
        "give the baseline another name",
    ),
    "two baselines of one name": (
        {"evaluation__baselines": [{"name": "few", "examples": n} for n in (2, 4)]},
        "Duplicate value",
    ),
    "a gate against an unknown baseline": (
        {
            "evaluation__gate": [
                {"metric": "rougeL", "minImprovement": 0, "baseline": "few"},
            ]
        },
        "a baseline that evaluation.baselines does not have",
    ),
    "a loss against a baseline": (
        {
            "evaluation__baselines": [{"name": "few", "examples": 2}],
            "evaluation__gate": [{"metric": "loss", "minImprovement": 0, "baseline": "few"}],
        },
        "baselines are compared by their answers; give",
    ),
    "baselines of an objective without answers": (
        {"objective": "DPO", "evaluation__baselines": [{"name": "few", "examples": 2}]},
        "which only SFT and GRPO evaluate",
    ),
    "examples of rows without answers": (
        {
            "objective": "GRPO",
            "grpo": {"rewards": [{"type": "length"}]},
            "evaluation__baselines": [{"name": "few", "examples": 2}],
        },
        "examples have answers, which only rows of SFT have",
    ),
    "points where a fraction is meant": (
        {"evaluation__gate": [{"metric": "exactMatch", "minImprovement": 5}]},
        "write 0.05 for five percentage points",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_an_evaluation_is_refused_for(api: Api, namespace: str, what: str) -> None:
    changes, message = REFUSED[what]
    with pytest.raises(ApiError) as refusal:
        api.create(job(namespace, **changes))
    assert message in refusal.value.message
    assert api.list("FineTuneJob", namespace) == []


def test_an_evaluation_with_everything_is_admitted(api: Api, namespace: str) -> None:
    evaluation = {
        "metrics": ["accuracy", "macroF1", "loss"],
        "labels": ["billing", "outage"],
        "normalization": "SQuAD",
        "baselines": [
            {"name": "instructed", "systemPrompt": "Answer with the name of one team."},
            {"name": "few-shot", "examples": 4},
        ],
        "gate": [
            {"metric": "loss", "minRelativeImprovement": "2%"},
            {"metric": "accuracy", "minImprovement": 0.05, "baseline": "few-shot"},
            {"metric": "macroF1", "minImprovement": -0.02, "statistic": "Estimate"},
        ],
    }
    stored = api.create(job(namespace, evaluation=evaluation))["spec"]["evaluation"]
    assert {name: stored[name] for name in evaluation} == evaluation


@pytest.mark.parametrize("objective", ["SFT", "Completion", *PREFERENCE_OBJECTIVES])
def test_the_gate_on_preference_accuracy_needs_a_preference_objective(
    api: Api, namespace: str, objective: str
) -> None:
    gate = [{"metric": "preferenceAccuracy", "minImprovement": 0.02}]
    manifest = job(namespace, objective=objective, evaluation__gate=gate)
    if objective in PREFERENCE_OBJECTIVES:
        assert api.create(manifest)["metadata"]["uid"]
        return
    with pytest.raises(ApiError, match="a metric that the objective does not measure"):
        api.create(manifest)
