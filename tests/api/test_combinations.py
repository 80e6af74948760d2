"""The API server rejects what the table of combinations refuses, and nothing else."""

from __future__ import annotations

from typing import Any

import pytest
from finetune_api import API_VERSION
from finetune_api.combinations import ALL_VALUES, RULES, Rule, refusal_messages
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.api.client import Api, ApiError
from tests.api.combinations import (
    ABSENT,
    Spec,
    breaking,
    completed,
    conditions,
    defaulted,
    field,
    minimal,
    put,
    repaired,
    sample,
    values,
)


def dry_run(api: Api, namespace: str, spec: Spec) -> str:
    """The message with which the API server rejects a spec; empty where it accepts it."""
    manifest = {
        "apiVersion": API_VERSION,
        "kind": "FineTuneJob",
        "metadata": {"generateName": "made-"},
        "spec": spec,
    }
    path = f"/apis/{API_VERSION}/namespaces/{namespace}/finetunejobs"
    try:
        api.request("POST", path, manifest, fieldValidation="Strict", dryRun="All")
    except ApiError as refusal:
        return refusal.message
    return ""


@pytest.mark.parametrize("number", range(len(RULES)), ids=lambda n: f"{n}-{RULES[n].field}")
def test_a_job_that_breaks_a_rule_is_refused_and_admitted_when_repaired(
    api: Api, namespace: str, number: int
) -> None:
    rule: Rule = RULES[number]
    admitted = 0
    for broken in breaking(rule):
        message = dry_run(api, namespace, broken)
        assert rule.message in message, broken
        assert f"spec.{rule.field}: Invalid value" in message
        message = dry_run(api, namespace, repaired(rule, broken))
        assert rule.message not in message
        admitted += not message
    assert admitted, "the API server admits no repaired spec"


@pytest.mark.parametrize("method", ALL_VALUES["method.type"])
def test_the_api_server_admits_method_objective_and_strategy_as_the_table_does(
    api: Api, namespace: str, method: str
) -> None:
    for objective in ALL_VALUES["objective"]:
        for strategy in (*ALL_VALUES["compute.strategy"], "Auto"):
            spec = completed({**minimal(), "method": {"type": method}, "objective": objective})
            spec["compute"] = {"strategy": strategy}
            message = dry_run(api, namespace, spec)
            assert bool(message) == bool(refusal_messages(defaulted(spec))), message


@st.composite
def crowded(draw: st.DrawFn) -> Spec:
    """A spec in which several fields of the table have values of the table."""
    spec = minimal()
    table = conditions(RULES)
    for path in draw(st.lists(st.sampled_from(sorted(table)), max_size=8, unique=True)):
        condition = draw(st.sampled_from(table[path]))
        schema = field(path)
        others: list[Any] = schema.get("enum", [ABSENT])
        if schema["type"] == "boolean":
            others = [True, False]
        if schema["type"] in ("object", "number"):
            others = [sample(schema)]
        put(spec, path, draw(st.sampled_from([*values(condition), *others])))
    return completed(spec)


def test_python_and_the_api_server_refuse_the_same_specs(api: Api, namespace: str) -> None:
    messages = {rule.message for rule in RULES}
    seen: set[str] = set()

    @settings(
        max_examples=400,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        derandomize=True,
    )
    @given(crowded())
    def agree(spec: Spec) -> None:
        message = dry_run(api, namespace, spec)
        expected = set(refusal_messages(defaulted(spec)))
        assert {each for each in messages if each in message} == expected, message
        assert bool(message) == bool(expected), message
        seen.update(expected or {"admitted"})

    agree()
    assert "admitted" in seen
    assert len(seen) > len(messages) / 2, "hardly any rule was tried"
