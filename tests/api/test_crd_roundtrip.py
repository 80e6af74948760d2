"""The API server admits the specs that the models admit, and returns them unchanged."""

from __future__ import annotations

from typing import Any

import pytest
from finetune_api import API_VERSION
from finetune_api.crd import KINDS, Kind
from finetune_api.schema import Schema, structural_schema
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from tests.api.client import Api, ApiError
from tests.api.strategies import specs

SLOW = settings(
    max_examples=100,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    derandomize=True,
)


def stored(api: Api, kind: Kind, namespace: str, spec: dict[str, Any]) -> dict[str, Any] | str:
    """The spec that the API server stored, or the message of its refusal."""
    metadata = {"generateName": "made-", "namespace": namespace}
    manifest = {"apiVersion": API_VERSION, "kind": kind.name, "metadata": metadata, "spec": spec}
    try:
        out: dict[str, Any] = api.create(manifest, namespace)["spec"]
        return out
    except ApiError as refusal:
        return refusal.message


def rules_over_fields(schema: Schema) -> set[str]:
    """Messages of the rules that compare several fields, which only the API server evaluates."""
    if schema.get("type") == "array":
        return rules_over_fields(schema["items"])
    if schema.get("type") != "object":
        return set()
    messages = {rule["message"] for rule in schema.get("x-kubernetes-validations", ())}
    return messages.union(*map(rules_over_fields, schema.get("properties", {}).values()))


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_a_spec_that_the_model_admits_comes_back_as_the_model_reads_it(
    api: Api, namespace: str, kind: Kind
) -> None:
    seen = {"stored": 0}
    allowed = rules_over_fields(structural_schema(kind.spec, spec=True))

    @SLOW
    @given(specs(kind.spec))
    def roundtrip(spec: dict[str, Any]) -> None:
        read = kind.spec.model_validate(spec)
        back = stored(api, kind, namespace, spec)
        if isinstance(back, str):
            assert any(rule in back for rule in allowed), back
            return
        seen["stored"] += 1
        assert kind.spec.model_validate(back) == read

    roundtrip()
    assert seen["stored"] >= 10, "hardly any spec got past the rules"


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_model_and_api_server_admit_the_same_strings(api: Api, namespace: str, kind: Kind) -> None:
    alphabet = "aZ0-._/:% \nGi€hfpvcs"

    @SLOW
    @given(
        st.sampled_from(PATTERNED[kind.name]),
        st.text(alphabet, max_size=12),
        st.sampled_from(PREFIXES),
    )
    def agree(path: tuple[str, ...], text: str, prefix: str) -> None:
        spec = minimal(kind.name)
        at = spec
        for parent in path[:-1]:
            at = at.setdefault(parent, {})
        at[path[-1]] = prefix + text
        try:
            kind.spec.model_validate(spec)
            admitted = True
        except ValidationError:
            admitted = False
        back = stored(api, kind, namespace, spec)
        assert isinstance(back, dict) == admitted, back

    agree()


PATTERNED: dict[str, list[tuple[str, ...]]] = {
    "FineTuneJob": [("model", "uri"), ("dataset", "holdout"), ("serve", "endpoint")],
    "ModelEndpoint": [("artifact", "uri"), ("artifact", "digest")],
    "AcceleratorProfile": [("memoryPerDevice",)],
}
PREFIXES = ["", "hf://", "pvc://", "pvc://c/", "sha256:", "10", "a"]


def minimal(kind: str) -> dict[str, Any]:
    """The smallest valid spec of a kind."""
    if kind == "FineTuneJob":
        data = {"train": [{"uri": "s3://b/rows.jsonl"}]}
        return {"model": {"uri": "hf://org/model"}, "dataset": data}
    if kind == "ModelEndpoint":
        return {"artifact": {"uri": "pvc://claim/folder", "digest": "sha256:" + 64 * "0"}}
    return {"memoryPerDevice": "80Gi"}
