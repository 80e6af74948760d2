"""Number and seed of the specs of a run, and the verdict of the models on one.

`make fuzz N=10000` makes 10,000 of every kind; the suite makes a few hundred, the same ones in
every run. A failing spec is shrunk and printed with the seed that reproduces it.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable
from typing import Any

from finetune_api.base import SpecModel
from finetune_api.combinations import refusal_messages
from finetune_api.crd import KINDS, Kind
from finetune_api.finetunejob import FineTuneJobSpec
from finetune_api.schema import Schema
from hypothesis import HealthCheck, Phase, seed, settings
from pydantic import ValidationError

from tests.api.client import Manifest

EXAMPLES = int(os.environ.get("FINETUNE_FUZZ", "100"))
"""Specs of each kind that the API server checks; planning costs more, so PLANS is smaller."""
PLANS = max(20, EXAMPLES // 3)
SEED = int(os.environ.get("FINETUNE_FUZZ_SEED", "0"))
Property = Callable[..., None]
KIND: dict[str, Kind] = {kind.name: kind for kind in KINDS}


def fuzzed(examples: int) -> Callable[[Property], Property]:
    """Run a property over this number of examples of SEED."""
    limits = settings(
        max_examples=examples,
        deadline=None,
        database=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
        print_blob=False,
    )
    return lambda test: seed(SEED)(limits(test))


def print_summary(about: str, seen: Counter[str]) -> None:
    """Print how the specs ended, and the seed that repeats the run."""
    ends = ", ".join(f"{count} {end}" for end, count in seen.most_common())
    print(f"fuzz: {seen.total()} {about}: {ends}; FINETUNE_FUZZ_SEED={SEED}")


def manifest(kind: str, spec: Any, namespace: str, name: str = "fuzzed") -> Manifest:
    """An object with this spec."""
    metadata = {"name": name, "namespace": namespace}
    return {"apiVersion": "finetune.dev/v1alpha1", "kind": kind, "metadata": metadata, "spec": spec}


def models_read(kind: str, schema: Schema, spec: Any) -> SpecModel | str:
    """The spec as the models read it, or why they do not admit it.

    An absent field and null are the same to the API server, and 2.0 is an integer in JSON.
    """
    wire = json.dumps(as_read(schema, spec))
    try:
        read: SpecModel = KIND[kind].spec.model_validate_json(wire, strict=True)
    except ValidationError as error:
        return str(error)
    if isinstance(read, FineTuneJobSpec) and (rules := refusal_messages(read.to_wire())):
        return "; ".join(rules)
    return read


def as_read(schema: Schema, value: Any) -> Any:
    """The value as the API server reads it."""
    if isinstance(value, float) and value.is_integer() and schema.get("type") == "integer":
        return int(value)
    if isinstance(value, list):
        return [as_read(schema.get("items", {}), item) for item in value]
    if not isinstance(value, dict):
        return value
    fields = schema.get("properties", {})
    return {
        name: as_read(fields.get(name, {}), item)
        for name, item in value.items()
        if item is not None or name not in fields
    }
