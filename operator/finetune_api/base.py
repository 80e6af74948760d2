"""Base classes and field types of all models: camelCase on the wire, docstrings as descriptions.

`SpecModel` is for what users write: an unknown field is an error. `StatusModel` is for what the
operator and the trainer write and read back: an unknown field is ignored, so that an older operator
can read the status or stage result of a newer one.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    JsonValue,
    StringConstraints,
    ValidationError,
    WithJsonSchema,
)
from pydantic.alias_generators import to_camel
from pydantic_core import CoreSchema
from pydantic_core.core_schema import (
    no_info_after_validator_function,
    no_info_before_validator_function,
)

CHILD_NAME_PATTERN = r"^[a-z]([-a-z0-9]*[a-z0-9])?$"
CHILD_NAME_MAX = 40
_LABEL = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?"
DNS_LABEL_PATTERN = rf"^{_LABEL}$"
SUBDOMAIN = rf"{_LABEL}(\.{_LABEL})*"
_NAME = r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?"
OBJECT_NAME_PATTERN = rf"^{SUBDOMAIN}$"
LABEL_KEY_PATTERN = rf"^({SUBDOMAIN}/)?{_NAME}$"
LABEL_VALUE_PATTERN = rf"^({_NAME})?$"
RESOURCE_PATTERN = rf"^{SUBDOMAIN}/{_NAME}$"
NOT_SPACE = r"[^\x00-\x20\x7f]"
"""Spelled out, because `\\S` matches different characters in Go and in Rust."""
PERCENT_PATTERN = r"^-?[0-9]{1,3}(\.[0-9]{1,4})?%$"
FRACTION_PATTERN = r"^([1-9][0-9]?(\.[0-9]{1,4})?|0\.0{0,3}[1-9][0-9]{0,3})%$"
REASON_PATTERN = r"^[A-Za-z][A-Za-z0-9_]*$"
CONDITION_TYPE_PATTERN = (
    r"^([a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*/)?"
    r"(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])$"
)
CONDITION_REASON_PATTERN = r"^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$"
QUANTITY_PATTERN = r"^\+?([0-9]+(\.[0-9]*)?|\.[0-9]+)([mkMGTP]|[KMGTP]i|[eE][-+]?[0-9]{1,2})?$"
"""What Kubernetes reads as a quantity, without signs and units that make no sense here."""
NOT_OBSERVED = -1
"""observedGeneration of an object whose status the operator has not written."""
INT_OR_STRING = "x-kubernetes-int-or-string"
LIST_TYPE = "x-kubernetes-list-type"


def cel(rule: str, message: str, field_path: str | None = None) -> dict[str, JsonValue]:
    """One CEL validation rule as `x-kubernetes-validations` expects it."""
    out: dict[str, JsonValue] = {"rule": rule, "message": message}
    if field_path:
        out["fieldPath"] = field_path
    return out


@dataclass(frozen=True)
class PatternMessage:
    """Makes the API server reject a string with this sentence instead of a regular expression."""

    message: str

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        out = handler(schema)
        rule = cel(f"self.matches(r'{out.pop('pattern')}')", self.message)
        return {**out, "x-kubernetes-validations": [rule]}


@dataclass(frozen=True)
class RefusedPattern:
    """Makes the model and the API server reject the strings that match a pattern."""

    pattern: str
    message: str
    exempt_prefix: str | None = None
    """Beginning of strings that are admitted all the same."""

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return no_info_after_validator_function(self._check, handler(source))

    def _check(self, text: str) -> str:
        is_exempt = self.exempt_prefix is not None and text.startswith(self.exempt_prefix)
        if re.search(self.pattern, text) and not is_exempt:
            raise ValueError(self.message)
        return text

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        out = handler(schema)
        rule = f"!self.matches(r'{self.pattern}')"
        if self.exempt_prefix is not None:
            rule += f" || self.startsWith('{self.exempt_prefix}')"
        rules = [*out["x-kubernetes-validations"], cel(rule, self.message)]
        return {**out, "x-kubernetes-validations": rules}


@dataclass(frozen=True)
class OrInteger:
    """Makes the API server store an integer too, which the model reads as its text."""

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return no_info_before_validator_function(self._to_text, handler(source))

    def _to_text(self, value: object) -> object:
        is_integer = isinstance(value, int) and not isinstance(value, bool)
        return str(value) if is_integer else value

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        out = handler(schema)
        del out["type"]
        rules = [
            {**each, "rule": each["rule"].replace("self.", "string(self).")}
            for each in out["x-kubernetes-validations"]
        ]
        return {**out, INT_OR_STRING: True, "x-kubernetes-validations": rules}


@dataclass(frozen=True)
class CheckedKeys:
    """Makes the API server check the keys of a map as the model does."""

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        out = handler(schema)
        rules = []
        for each in out.pop("propertyNames")["x-kubernetes-validations"]:
            rule = each["rule"].replace("self.", "key.")
            rules.append(cel(f"self.all(key, {rule})", f"a key {each['message']}"))
        return {**out, "x-kubernetes-validations": rules}


@dataclass(frozen=True)
class AnyValue:
    """Makes the API server take any value: a structural schema cannot name several types."""

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        return {"x-kubernetes-preserve-unknown-fields": True}


ChildName = Annotated[
    str,
    StringConstraints(pattern=CHILD_NAME_PATTERN, max_length=CHILD_NAME_MAX),
    PatternMessage(
        "must be lower-case letters, digits and '-', begin with a letter, not end with '-'"
    ),
]
ObjectName = Annotated[
    str,
    StringConstraints(pattern=OBJECT_NAME_PATTERN, max_length=253),
    PatternMessage("must be the name of an object: lower-case letters, digits, '-' and '.'"),
]
Percent = Annotated[
    str,
    StringConstraints(pattern=PERCENT_PATTERN, max_length=12),
    PatternMessage("must be a percentage such as 2% or -0.5%"),
]
FractionPercent = Annotated[
    str,
    StringConstraints(pattern=FRACTION_PATTERN, max_length=12),
    PatternMessage("must be a percentage above 0% and below 100%, such as 10%"),
]
Quantity = Annotated[
    str,
    StringConstraints(pattern=QUANTITY_PATTERN, max_length=20),
    PatternMessage("must be a quantity such as 80Gi, 500m or 4"),
    OrInteger(),
]
LabelValue = Annotated[
    str,
    StringConstraints(pattern=LABEL_VALUE_PATTERN, max_length=63),
    PatternMessage("must be the value of a label: letters, digits, '-', '_' and '.'"),
]
LabelKey = Annotated[
    str,
    StringConstraints(pattern=LABEL_KEY_PATTERN, max_length=316),
    PatternMessage("must be the key of a label, such as gpu or example.com/gpu"),
]
ShortText = Annotated[str, StringConstraints(max_length=256)]
LONG_TEXT = 4096
LongText = Annotated[str, StringConstraints(max_length=LONG_TEXT)]
Time = Annotated[str, WithJsonSchema({"type": "string", "format": "date-time"})]
"""A time in RFC 3339, of which the API server checks the format. The model does not: for one time
in an item, `from_stored` would leave out the whole list."""
ConditionStatus = Literal["True", "False", "Unknown"]
Reason = Annotated[str, StringConstraints(pattern=REASON_PATTERN, max_length=128)]
"""Machine-readable cause, as a condition and an event can hold it."""


class WireModel(BaseModel):
    """Base of every model that is serialised: camelCase keys, attribute docstrings."""

    model_config = ConfigDict(
        alias_generator=to_camel,
        populate_by_name=True,
        use_attribute_docstrings=True,
        frozen=True,
    )

    def to_wire(self) -> dict[str, Any]:
        """The object as JSON-ready data with camelCase keys, absent fields left out."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


class SpecModel(WireModel):
    """What users write: unknown fields are refused."""

    model_config = ConfigDict(extra="forbid")


class LocalObjectReference(SpecModel):
    """An object in the namespace of the one that names it."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"x-kubernetes-map-type": "atomic"})

    name: ObjectName
    """metadata.name."""


class StatusModel(WireModel):
    """What the operator and the trainer write and read back: unknown fields are ignored."""

    model_config = ConfigDict(extra="ignore")

    @classmethod
    def from_stored(cls, written: Mapping[str, Any] | None) -> Self:
        """The model of stored JSON, which another version may have written; a field that this
        version cannot read is left out."""
        fields = dict(written or {})
        try:
            return cls.model_validate(fields)
        except ValidationError as error:
            for each in error.errors():
                fields.pop(str(each["loc"][0]), None)
        return cls.model_validate(fields)


def validation_config(*rules: dict[str, JsonValue]) -> ConfigDict:
    """The model_config of a spec model whose schema carries these CEL rules."""
    return ConfigDict(extra="forbid", json_schema_extra={"x-kubernetes-validations": list(rules)})


def list_map_key(key: str) -> dict[str, JsonValue]:
    """The json_schema_extra of a list whose items are identified by one of their fields."""
    return {LIST_TYPE: "map", "x-kubernetes-list-map-keys": [key]}


LIST_SET: dict[str, JsonValue] = {LIST_TYPE: "set"}
"""The json_schema_extra of a list of names without duplicates, in any order. Not for one with a
default: the first item that a user applies would join those of the default."""


class Condition(StatusModel):
    """A condition with the schema of metav1.Condition (KEP-1623)."""

    type: Annotated[str, StringConstraints(pattern=CONDITION_TYPE_PATTERN, max_length=316)]
    """Name of the condition."""
    status: ConditionStatus
    """True, False or Unknown."""
    reason: Annotated[
        str, StringConstraints(pattern=CONDITION_REASON_PATTERN, min_length=1, max_length=1024)
    ]
    """Machine-readable cause of the last change, in CamelCase; docs/reasons.md lists all of
    them."""
    message: Annotated[str, StringConstraints(max_length=32768)]
    """Human-readable explanation of the reason."""
    last_transition_time: Time
    """When the status last changed, RFC 3339 in UTC."""
    observed_generation: int = Field(default=0, ge=0)
    """metadata.generation of the object that this condition was computed from."""
