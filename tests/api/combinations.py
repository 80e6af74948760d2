"""Specs that break the rules of the table of combinations, made from the table itself.

A value for every predicate comes from the predicate and from the schema of its field, so a rule
that is added to the table is tested without a change to the tests.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from copy import deepcopy
from typing import Any

from finetune_api.combinations import SECTIONS, Rule, refusal_messages
from finetune_api.finetunejob import FineTuneJobSpec
from finetune_api.predicates import Above, Given, Is, NotEmpty, Predicate
from finetune_api.schema import Schema, structural_schema

from tests.api.strategies import MATCHES

Spec = dict[str, Any]
SCHEMA: Schema = structural_schema(FineTuneJobSpec, spec=True)
WORDS = ("a", "hf://org/model", "2%")
ABSENT = object()


def minimal() -> Spec:
    """The smallest valid spec."""
    data = {"train": [{"uri": "s3://b/rows.jsonl"}]}
    return {"model": {"uri": "hf://org/model"}, "dataset": data}


def defaulted(spec: Spec) -> Spec:
    """The spec as the API server stores it."""
    return FineTuneJobSpec.model_validate(spec).to_wire()


def field(path: str) -> Schema:
    """The schema of a field."""
    schema = SCHEMA
    for name in path.split("."):
        schema = schema["properties"][name]
    return schema


def sample(schema: Schema) -> Any:
    """The smallest value that a schema admits."""
    match schema["type"]:
        case "object":
            wanted = schema.get("required", ())
            return {name: sample(schema["properties"][name]) for name in wanted}
        case "array":
            return [sample(schema["items"])]
        case "string":
            return schema["enum"][0] if "enum" in schema else _word(schema)
        case "boolean":
            return True
    least = schema.get("minimum", 0)
    return least + 1 if schema.get("exclusiveMinimum") else least


def _word(schema: Schema) -> str:
    rules = [each["rule"] for each in schema.get("x-kubernetes-validations", ())]
    patterns = [found[1] for rule in rules if (found := MATCHES.match(rule))]
    return next(word for word in WORDS if all(re.match(pattern, word) for pattern in patterns))


def put(spec: Spec, path: str, value: Any) -> None:
    """Set a field; ABSENT removes it."""
    *parents, last = path.split(".")
    at = spec
    for parent in parents:
        at = at.setdefault(parent, {})
    if value is ABSENT:
        at.pop(last, None)
    else:
        at[last] = {**value, **at[last]} if isinstance(at.get(last), dict) else value


def completed(spec: Spec) -> Spec:
    """The spec with a reward, which GRPO needs by another rule than those of the table."""
    if spec.get("objective") == "GRPO" or "grpo" in spec:
        grpo = spec.setdefault("grpo", {})
        if "rewardModel" not in grpo:
            grpo.setdefault("rewards", [{"type": "length"}])
    return spec


def values(condition: Predicate) -> list[Any]:
    """Values of the field for which the condition holds."""
    if isinstance(condition, Is):
        return list(condition.values)
    if isinstance(condition, Above):
        most = field(condition.path).get("maximum", condition.limit + 2)
        return [(condition.limit + most) / 2]
    assert isinstance(condition, Given | NotEmpty)
    return [sample(field(condition.path))]


def breaking(rule: Rule) -> Iterator[Spec]:
    """A spec for every way to break a rule."""
    for combination in itertools.product(*(values(each) for each in rule.when)):
        spec = minimal()
        for condition, value in zip(rule.when, combination, strict=True):
            put(spec, condition.path, value)
        yield completed(_owned(spec, rule))


def _owned(spec: Spec, rule: Rule) -> Spec:
    """The spec with the owner of a section, where the rule has no predicate on the owner."""
    paths = [condition.path for condition in rule.when]
    for section, owner, owners in SECTIONS:
        if owner not in paths and any(path.startswith(f"{section}.") for path in paths):
            put(spec, owner, owners[0])
    return spec


def repaired(rule: Rule, broken: Spec) -> Spec:
    """The spec with only the field changed that the rule names, so that it breaks the rule no
    more."""
    schema = field(rule.field)
    others = {"boolean": [False, True], "number": [0], "integer": [0]}.get(schema["type"], [])
    for value in (ABSENT, *schema.get("enum", others)):
        spec = deepcopy(broken)
        put(spec, rule.field, value)
        spec = completed(spec)
        if set(refusal_messages(defaulted(spec))) <= set(refusal_messages(defaulted(broken))) - {
            rule.message
        }:
            return spec
    raise AssertionError(f"no value of {rule.field} repairs {broken}")


def conditions(rules: tuple[Rule, ...]) -> dict[str, list[Predicate]]:
    """Every condition of the table by the path of its field."""
    found: dict[str, list[Predicate]] = {}
    for condition in itertools.chain.from_iterable(rule.when for rule in rules):
        found.setdefault(condition.path, []).append(condition)
    return found
