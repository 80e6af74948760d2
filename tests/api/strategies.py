"""Hypothesis strategies for every spec, made from the models: all that pydantic admits.

Strings with a pattern come from the pattern, numbers from their bounds, and optional fields are set
or left out. So a test finds a rule that only the CRD or only the model has.
"""

from __future__ import annotations

import re
from typing import Any

from finetune_api.base import INT_OR_STRING, LIST_TYPE
from finetune_api.schema import ANY_VALUE, Schema, structural_schema
from hypothesis import strategies as st
from pydantic import BaseModel

# Characters of a YAML file; control characters and lone surrogates are not among them.
TEXT = st.characters(min_codepoint=0x20, max_codepoint=0x2FF, exclude_categories=("Cc", "Cs"))
SAFE_INTEGER = 2**53 - 1
KEY_PATTERN = re.compile(r"self\.all\(key, key\.matches\(r'(.*)'\)\)")
"""The rule that gives the keys of a map a pattern."""
MATCHES = re.compile(r"^(?:self|string\(self\))\.matches\(r'(.*)'\)$")
"""The rule that gives a string a pattern."""
REFUSES = re.compile(r"^!self\.matches\(r'(.*)'\)$")
"""The rule that refuses the strings with a pattern."""


def specs(model: type[BaseModel]) -> st.SearchStrategy[dict[str, Any]]:
    """Specs of a model in wire form, defaults left out at random."""
    out: st.SearchStrategy[dict[str, Any]] = of(structural_schema(model, spec=True))
    return out


def of(schema: Schema) -> st.SearchStrategy[Any]:
    """Values that a structural schema admits, without its rules over several fields."""
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    if ANY_VALUE in schema:
        return st.booleans() | st.integers(0, SAFE_INTEGER) | st.text(TEXT, max_size=8)
    if INT_OR_STRING in schema:
        return st.integers(0, SAFE_INTEGER) | _string(schema)
    match schema["type"]:
        case "object":
            return _object(schema)
        case "array":
            return _array(schema)
        case "string":
            return _string(schema)
        case "integer":
            return st.integers(schema.get("minimum"), schema.get("maximum", SAFE_INTEGER))
        case "number":
            return _number(schema)
        case "boolean":
            return st.booleans()
    raise AssertionError(f"no strategy for {schema}")


def _object(schema: Schema) -> st.SearchStrategy[dict[str, Any]]:
    if isinstance(values := schema.get("additionalProperties"), dict):
        keys = st.from_regex(r"[a-z]{1,8}(\.[a-z]{1,8}/[a-z]{1,8})?", fullmatch=True)
        for rule in schema.get("x-kubernetes-validations", ()):
            if pattern := KEY_PATTERN.fullmatch(rule["rule"]):
                keys = keys.filter(re.compile(pattern[1]).search)
        return st.dictionaries(keys, of(values), max_size=min(schema["maxProperties"], 3))
    fields = {name: of(field) for name, field in schema["properties"].items()}
    required = set(schema.get("required", ()))
    return st.fixed_dictionaries(
        {name: field for name, field in fields.items() if name in required},
        optional={name: field for name, field in fields.items() if name not in required},
    )


def _array(schema: Schema) -> st.SearchStrategy[list[Any]]:
    key = schema.get("x-kubernetes-list-map-keys", [None])[0]
    unique = str if schema[LIST_TYPE] == "set" else None
    return st.lists(
        of(schema["items"]),
        min_size=schema.get("minItems", 0),
        max_size=min(schema.get("maxItems", 3), 3),
        unique_by=(lambda item: item[key]) if key else unique,
    )


def _string(schema: Schema) -> st.SearchStrategy[str]:
    rules = [each["rule"] for each in schema.get("x-kubernetes-validations", ())]
    patterns = [schema["pattern"]] if "pattern" in schema else []
    patterns += [found[1] for rule in rules if (found := MATCHES.match(rule))]
    refused = [re.compile(found[1]) for rule in rules if (found := REFUSES.match(rule))]
    least, most = schema.get("minLength", 0), schema.get("maxLength", 256)
    if not patterns:
        return st.text(TEXT, min_size=least, max_size=min(most, 20))
    # In Python `$` also matches before a line break, which Go and Rust do not do.
    strict = patterns[0].replace("$", r"\Z")
    fitting = st.from_regex(strict, alphabet=TEXT).filter(lambda text: least <= len(text) <= most)
    return fitting.filter(lambda text: not any(each.search(text) for each in refused))


def _number(schema: Schema) -> st.SearchStrategy[float]:
    return st.floats(
        schema.get("minimum", -1e18),
        schema.get("maximum", 1e18),
        exclude_min=schema.get("exclusiveMinimum", False),
        exclude_max=schema.get("exclusiveMaximum", False),
        allow_subnormal=False,
    )
