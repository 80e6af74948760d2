"""The API server and the models admit the same specs."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from finetune_api.combinations import RULES
from finetune_api.schema import structural_schema
from hypothesis import given
from hypothesis import strategies as st

from tests.api.client import Api, ApiError, object_path
from tests.api.fuzz.runs import EXAMPLES, KIND, fuzzed, manifest, models_read, print_summary
from tests.api.fuzz.specs import nearly_valid, spec_schema, valid
from tests.api.test_crd_roundtrip import rules_over_fields


def verdict(api: Api, kind: str, namespace: str, spec: Any) -> dict[str, Any] | ApiError:
    """The spec as the API server would store it, or its refusal."""
    path = object_path(kind, namespace)
    body = manifest(kind, spec, namespace)
    try:
        answer = api.request("POST", path, body, dryRun="All", fieldValidation="Strict")
    except ApiError as refusal:
        if refusal.status in (400, 413, 422):
            return refusal
        raise
    stored: dict[str, Any] = answer["spec"]
    return stored


@pytest.mark.parametrize("kind", list(KIND))
def test_the_api_server_and_the_models_admit_the_same_specs(
    api: Api, namespace: str, kind: str
) -> None:
    schema = spec_schema(kind)
    known = {rule.message for rule in RULES}
    # Only the API server checks rules over several fields outside the table, and duplicate keys.
    servers = rules_over_fields(structural_schema(KIND[kind].spec, spec=True)) - known
    seen: Counter[str] = Counter()

    @fuzzed(EXAMPLES)
    @given(st.one_of(valid(kind), nearly_valid(kind)))
    def agree(spec: Any) -> None:
        answer = verdict(api, kind, namespace, spec)
        read = models_read(kind, schema, spec)
        seen["refused" if isinstance(answer, ApiError) else "admitted"] += 1
        if not isinstance(answer, ApiError):
            assert not isinstance(read, str), f"stored, although the models refuse it: {read}"
            assert KIND[kind].spec.model_validate(answer) == read
        elif not isinstance(read, str):
            message = answer.message
            assert "Duplicate value" in message or any(rule in message for rule in servers), message

    try:
        agree()
    finally:
        print_summary(f"specs of {kind}", seen)
    assert min(seen["admitted"], seen["refused"]) >= EXAMPLES // 20
