"""Specs made from the schemas in crds/: valid ones, and ones with the mistakes of users.

`valid` adds a few fields to the smallest spec, so that most specs pass the rules over several
fields and are planned. `nearly_valid` then breaks one or two places of it: type, bound, pattern,
enum, a field too many, a field too few, unusual characters.
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from finetune_api.combinations import SECTIONS
from finetune_api.predicates import value_at
from finetune_api.schema import Schema
from hypothesis import strategies as st

from tests.api.combinations import completed, put
from tests.api.strategies import SAFE_INTEGER, of

CRDS = Path(__file__).resolve().parents[3] / "crds"
Spec = dict[str, Any]
Place = tuple[str, ...]
"""Names of fields from the spec down; `[]` is the first item of a list."""
ITEM = "[]"

LEAST: dict[str, Spec] = {
    "FineTuneJob": {
        "model": {"uri": "hf://org/model"},
        "dataset": {"train": [{"uri": "s3://b/rows.jsonl"}]},
    },
    "ModelEndpoint": {"artifact": {"uri": "pvc://claim/folder", "digest": "sha256:" + 64 * "0"}},
    "AcceleratorProfile": {"memoryPerDevice": "80Gi"},
}
ODD_CHARACTERS = "\x00\x07\t\n\r\x1b\x7f\x85\xa0\u2028\u202e\u3000\ufeff\ufffd\U0001f600%{}\"'\\$"
WRONG_TYPES: list[Any] = [None, True, 0, -1, 1.5, 2.0, "", "1", "true", [], [None], {}, {"a": 1}]
NUMBERS: list[Any] = [-1, 0, -0.0, 1e-320, 2**31, SAFE_INTEGER + 1, 2**63, -(2**63), 1e308]


@cache
def spec_schema(kind: str) -> Schema:
    """The schema of a kind's spec, as it is in crds/."""
    (path,) = CRDS.glob(f"*_{kind.lower()}s.yaml")
    version = yaml.safe_load(path.read_text())["spec"]["versions"][0]
    schema: Schema = version["schema"]["openAPIV3Schema"]["properties"]["spec"]
    return schema


def places(schema: Schema, above: Place = ()) -> Iterator[tuple[Place, Schema]]:
    """Every field below a schema and what it may hold."""
    for name, field in schema.get("properties", {}).items():
        yield (*above, name), field
        yield from places(field, (*above, name))
    if "items" in schema:
        yield (*above, ITEM), schema["items"]
        yield from places(schema["items"], (*above, ITEM))


@cache
def _fields(kind: str) -> list[tuple[Place, Schema]]:
    return list(places(spec_schema(kind)))


@cache
def _leaves(kind: str) -> list[tuple[Place, Schema]]:
    return [(place, field) for place, field in _fields(kind) if "properties" not in field]


@st.composite
def valid(draw: st.DrawFn, kind: str) -> Spec:
    """The smallest valid spec with a few more fields, each valid by its own schema.

    Most often a section stands with the choice that it belongs to; else few specs are admitted.
    """
    schema = spec_schema(kind)
    spec = deepcopy(LEAST[kind])
    for place, field in draw(st.lists(st.sampled_from(_leaves(kind)), max_size=6)):
        _put(draw, spec, schema, place, deepcopy(draw(of(field))))
    if kind == "FineTuneJob" and draw(st.integers(0, 3)):
        for section, owner, owners in SECTIONS:
            if value_at(spec, section) is not None:
                put(spec, owner, owners[0])
        completed(spec)
    return spec


@st.composite
def nearly_valid(draw: st.DrawFn, kind: str) -> Spec:
    """A valid spec with one or two places broken."""
    schema = spec_schema(kind)
    spec: Spec = draw(valid(kind))
    for place, field in draw(st.lists(st.sampled_from(_fields(kind)), min_size=1, max_size=2)):
        _break(draw, spec, schema, place, field)
    return spec


def _break(draw: st.DrawFn, spec: Spec, schema: Schema, place: Place, field: Schema) -> None:
    what = draw(st.sampled_from(("value", "value", "value", "unknown", "missing")))
    if what == "value":
        _put(draw, spec, schema, place, deepcopy(draw(_wrong(field))))
        return
    at = _parent(draw, spec, schema, place)
    if what == "unknown" and isinstance(at, dict):
        at[draw(st.sampled_from(("epoch", "Model", "a b", "", place[-1].upper(), "\x00")))] = 1
    elif what == "missing" and isinstance(at, dict):
        at.pop(place[-1], None)


def _wrong(field: Schema) -> st.SearchStrategy[Any]:
    wrong = [st.sampled_from(WRONG_TYPES)]
    match field.get("type", "string"):  # a quantity has none
        case "string":
            wrong += [_strings(field), _strings(field)]
        case "integer" | "number":
            bounds = [field[key] for key in ("minimum", "maximum") if key in field]
            near = [each for bound in bounds for each in (bound - 1, bound, bound + 1)]
            wrong.append(st.sampled_from(near + NUMBERS))
        case "array":
            item, most = of(field["items"]), field.get("maxItems", 100)
            wrong += [item.map(lambda one: [one, one]), item.map(lambda one: [one] * (most + 1))]
        case "object" if "additionalProperties" in field:
            wrong.append(st.dictionaries(st.text(ODD_CHARACTERS + "aZ/.-_"), st.text("aZ. /")))
    return st.one_of(wrong)


def _strings(field: Schema) -> st.SearchStrategy[str]:
    """Almost valid strings: odd characters, one character too many, far too many."""
    good = of(field).map(str)
    most = field.get("maxLength", 64)
    odd = st.text(ODD_CHARACTERS + "aZ0-./:_", max_size=12)
    changed = st.tuples(good, odd, st.integers(0, 300))
    return st.one_of(
        odd,
        changed.map(lambda drawn: drawn[0][: drawn[2]] + drawn[1] + drawn[0][drawn[2] :]),
        good.map(str.swapcase),
        st.sampled_from(["a", "\U0001f600", "\x00"]).map(lambda one: one * (most + 1)),
        st.just("a" * most),
        st.just("x" * 100_000),
    )


def _put(draw: st.DrawFn, spec: Spec, schema: Schema, place: Place, value: Any) -> None:
    at = _parent(draw, spec, schema, place)
    if place[-1] == ITEM and isinstance(at, list):
        at[:1] = [value]
    elif isinstance(at, dict):
        at[place[-1]] = value


def _parent(draw: st.DrawFn, spec: Spec, schema: Schema, place: Place) -> Any:
    """The parent of a place; missing parents are created with their required fields."""
    at: Any = spec
    for name in place[:-1]:
        schema = schema["items"] if name == ITEM else schema["properties"][name]
        if isinstance(at, list):
            if not at:
                at.append(_required(draw, schema))
            at = at[0]
        elif isinstance(at, dict):
            if at.get(name) is None:
                at[name] = _required(draw, schema)
            at = at[name]
    return at


def _required(draw: st.DrawFn, schema: Schema) -> Any:
    """The smallest valid object or list."""
    if "properties" not in schema:
        return [] if schema["type"] == "array" else {}
    fields = schema["properties"]
    return {name: draw(of(fields[name])) for name in schema.get("required", ())}
