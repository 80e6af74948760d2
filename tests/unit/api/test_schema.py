"""Models become structural schemas; a model that cannot become one is an error."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import pytest
from finetune_api.base import (
    CHILD_NAME_PATTERN,
    AnyValue,
    ChildName,
    SpecModel,
    StatusModel,
    WireModel,
)
from finetune_api.schema import Schema, SchemaError, structural_schema
from pydantic import Field, JsonValue, StringConstraints

Short = Annotated[str, StringConstraints(max_length=8)]


class Inner(SpecModel):
    """An inner object."""

    size: int = Field(default=3, ge=1)
    """How many."""


class Outer(SpecModel):
    """An outer object."""

    inner: Inner = Field(default_factory=Inner)
    """The first."""
    maybe: Inner | None = None
    """The second,
    if any."""
    word: Literal["only"] = "only"
    """One word."""
    share: float = Field(default=0.5, gt=0, lt=1)
    """A share."""
    names: list[Short] = Field(default_factory=lambda: ["a"], max_length=4)
    """Names."""
    labels: dict[str, Short] = Field(default_factory=dict, max_length=4)
    """Labels."""
    values: dict[str, Annotated[JsonValue, AnyValue()]] = Field(default_factory=dict, max_length=4)
    """Values."""
    child: ChildName
    """A child."""


def properties(spec: bool = True) -> dict[str, Schema]:
    out: dict[str, Schema] = structural_schema(Outer, spec=spec)["properties"]
    return out


def test_an_inner_model_is_inlined_with_the_description_of_the_field() -> None:
    inner = properties()["inner"]
    assert inner["description"] == "The first."
    assert inner["properties"]["size"] == {
        "description": "How many.",
        "type": "integer",
        "minimum": 1,
        "format": "int64",
        "default": 3,
    }


def test_a_default_model_is_an_empty_object() -> None:
    assert properties()["inner"]["default"] == {}


def test_an_optional_field_is_neither_required_nor_nullable() -> None:
    schema = structural_schema(Outer, spec=True)
    assert schema["required"] == ["child"]
    assert schema["properties"]["maybe"]["description"] == "The second, if any."
    assert not {"anyOf", "nullable", "default"} & schema["properties"]["maybe"].keys()


def test_a_constant_is_an_enum() -> None:
    assert properties()["word"]["enum"] == ["only"]


def test_an_exclusive_bound_becomes_a_flag() -> None:
    assert properties()["share"] == {
        "description": "A share.",
        "type": "number",
        "format": "double",
        "minimum": 0,
        "exclusiveMinimum": True,
        "maximum": 1,
        "exclusiveMaximum": True,
        "default": 0.5,
    }


@pytest.mark.parametrize(
    ("bounds", "number_format"),
    [
        ({}, "int64"),
        ({"ge": 0}, "int64"),
        ({"ge": 0, "le": 2**31 - 1}, "int32"),
        ({"ge": -(2**31), "lt": 2**31}, "int64"),
        ({"ge": 0, "le": 2**32 - 1}, "int64"),
        ({"ge": -(2**31) - 1, "le": 5}, "int64"),
    ],
)
def test_the_bounds_of_an_integer_decide_its_format(
    bounds: dict[str, int], number_format: str
) -> None:
    class Sized(SpecModel):
        """Something with a size."""

        size: int = Field(**bounds)
        """Its size."""

    schema = structural_schema(Sized, spec=True)
    assert schema["properties"]["size"]["format"] == number_format


def test_lists_and_maps_keep_their_bounds_and_defaults() -> None:
    assert properties()["names"]["default"] == ["a"]
    assert properties()["names"]["maxItems"] == 4
    assert properties()["labels"]["additionalProperties"] == {"type": "string", "maxLength": 8}
    assert properties()["labels"]["maxProperties"] == 4


def test_values_of_any_type_are_kept_by_the_api_server() -> None:
    kept = {"x-kubernetes-preserve-unknown-fields": True}
    assert properties()["values"]["additionalProperties"] == kept


def test_a_pattern_with_a_message_becomes_a_rule_with_that_message() -> None:
    child = properties()["child"]
    assert "pattern" not in child
    assert child["x-kubernetes-validations"][0]["rule"] == f"self.matches(r'{CHILD_NAME_PATTERN}')"


def test_a_status_has_no_defaults() -> None:
    assert not [name for name, field in properties(spec=False).items() if "default" in field]


class Undescribed(SpecModel):
    """A model."""

    silent: Short


class Deep(SpecModel):
    """A model."""

    items: list[Undescribed] = Field(max_length=1)
    """Items."""


class Endless(SpecModel):
    """A model."""

    text: str
    """Text without an end."""


class EndlessList(SpecModel):
    """A model."""

    items: list[Short]
    """Items without an end."""


class Anything(StatusModel):
    """A model."""

    data: dict[str, Any]
    """Anything."""


class Either(SpecModel):
    """A model."""

    value: int | bool
    """One or the other."""


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Undescribed, r"Undescribed\.silent: write a docstring"),
        (Deep, r"Undescribed\.silent: write a docstring"),
        (Endless, r"Endless\.text: give this string a bound"),
        (EndlessList, r"EndlessList\.items: give this array a bound"),
        (Anything, r"Anything\.data: name its fields"),
        (Either, r"Either\.value: a union cannot be expressed"),
    ],
)
def test_a_model_that_makes_a_bad_crd_is_refused_by_field(
    model: type[WireModel], message: str
) -> None:
    with pytest.raises(SchemaError, match=message):
        structural_schema(model, spec=issubclass(model, SpecModel))


def test_an_exclusive_bound_that_the_api_server_would_round_is_refused() -> None:
    class Half(SpecModel):
        """Below a half."""

        share: float = Field(default=0.0, ge=0, lt=0.5)
        """A share."""

    with pytest.raises(SchemaError, match="share: an exclusive bound must be an integer"):
        structural_schema(Half, spec=True)
