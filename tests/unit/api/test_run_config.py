"""run.json keeps its bytes, gives a typed spec, and is read across versions of the operator."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from finetune_api.run_config import RunConfig
from pydantic import ValidationError

RELEASE_0_1 = Path(__file__).parent / "data" / "run-0.1.0.json"
"""As release 0.1.0 writes it into the ConfigMap of an attempt."""


def canonical(run: RunConfig) -> str:
    return json.dumps(run.to_wire(), sort_keys=True, indent=1, ensure_ascii=False)


def smallest(**changes: Any) -> dict[str, Any]:
    spec = {
        "model": {"uri": "hf://org/name"},
        "dataset": {"train": [{"uri": "pvc://data/a.jsonl"}]},
    }
    job = {"name": "glossary", "namespace": "team-a", "uid": "1"}
    return {"job": job, "stage": "train", "attempt": 1, "spec": {**spec, **changes}}


def test_the_run_of_the_release_before_is_read_and_written_again_with_equal_bytes() -> None:
    text = RELEASE_0_1.read_text().removesuffix("\n")
    run = RunConfig.model_validate_json(text)
    assert canonical(run) == text
    written = run.model_dump_json(by_alias=True, exclude_none=True)
    assert canonical(RunConfig.model_validate_json(written)) == text


def test_the_spec_is_serialised_as_the_user_wrote_it_and_read_with_its_defaults() -> None:
    # Neither the null nor the integer survives a round trip through the typed spec.
    written = {"training": {"learningRate": 1e-5, "warmupRatio": 0, "maxSteps": None}}
    run = RunConfig.model_validate(smallest(**written))
    assert run.to_wire()["spec"] == smallest(**written)["spec"]
    assert '"learningRate":0.00001,"warmupRatio":0,"maxSteps":null' in run.model_dump_json()
    assert (run.spec.training.learning_rate, run.spec.training.epochs) == (1e-5, 3)
    assert run.spec.method.type == "LoRA"


def test_the_spec_is_validated_once_and_is_no_part_of_run_json() -> None:
    run = RunConfig.model_validate(smallest())
    before = (canonical(run), run.model_dump_json(), run.model_copy())
    assert run.spec is run.spec
    assert (canonical(run), run.model_dump_json(), run.model_copy()) == before
    assert run == before[2]


def test_another_spec_in_a_copy_is_the_one_that_the_copy_reads() -> None:
    run = RunConfig.model_validate(smallest())
    assert run.spec.objective == "SFT"
    changed = run.model_copy(update={"raw_spec": {**run.raw_spec, "objective": "DPO"}})
    assert changed.spec.objective == "DPO"
    assert changed.to_wire()["spec"]["objective"] == "DPO"


def test_a_spec_of_another_version_is_refused_only_where_it_is_used() -> None:
    run = RunConfig.model_validate(smallest(tomorrow=True))
    assert run.to_wire()["spec"]["tomorrow"] is True
    with pytest.raises(ValidationError, match="tomorrow"):
        _ = run.spec


def test_a_fact_that_the_run_lacks_is_named_with_its_stage_and_attempt() -> None:
    run = RunConfig.model_validate(smallest())
    for required in (run.require_plan, run.require_model, run.require_data, run.require_reward):
        name = required.__name__.removeprefix("require_")
        with pytest.raises(ValueError, match=f"run.json of train, attempt 1, has no {name}"):
            required()
    full = RunConfig.model_validate_json(RELEASE_0_1.read_text())
    assert full.require_plan() == full.plan
    assert full.require_model() == full.model
    assert full.require_data() == full.data
