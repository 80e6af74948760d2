"""Pydantic models as structural schemas, the subset of OpenAPI v3 that the API server accepts.

Pydantic writes JSON Schema 2020-12: references, nullable unions, constants and numeric exclusive
bounds. None of that is structural, so this module rewrites it. A model that would make a bad CRD
raises SchemaError: a field without a description, a string or list in a spec without a bound (the
API server could not estimate the cost of CEL rules over it), or a type that a structural schema
cannot express.
"""

from collections.abc import Iterator
from typing import Any, get_args

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema
from pydantic_core import core_schema

from finetune_api.base import INT_OR_STRING, LIST_TYPE

Schema = dict[str, Any]

ANY_VALUE = "x-kubernetes-preserve-unknown-fields"
"""On a value of any type; every other one has a type, or INT_OR_STRING."""
KEPT = (
    "type",
    "format",
    "enum",
    "pattern",
    "minLength",
    "maxLength",
    "minimum",
    "maximum",
    "minItems",
    "maxItems",
    "minProperties",
    "maxProperties",
    "x-kubernetes-validations",
    LIST_TYPE,
    "x-kubernetes-list-map-keys",
    "x-kubernetes-map-type",
    ANY_VALUE,
    INT_OR_STRING,
)
REWRITTEN = (
    "$ref",
    "anyOf",
    "const",
    "exclusiveMinimum",
    "exclusiveMaximum",
    "properties",
    "required",
    "items",
    "additionalProperties",
    "description",
    "default",
    "title",
)
BOUNDS = {"string": ("maxLength", "enum"), "array": ("maxItems",), "object": ("maxProperties",)}


class SchemaError(Exception):
    """A model cannot become a CRD; the message names the field and the remedy."""


class _WithFactories(GenerateJsonSchema):
    """Adds the defaults that come from a factory, which pydantic leaves out."""

    def get_default_value(self, schema: core_schema.WithDefaultSchema) -> Any:
        factory = schema.get("default_factory")
        if factory is None:
            return super().get_default_value(schema)
        value = factory()  # type: ignore[call-arg]
        # The API server fills in the defaults of the fields of an empty object by itself.
        return {} if isinstance(value, BaseModel) else value


def structural_schema(model: type[BaseModel], *, spec: bool) -> Schema:
    """The structural schema of a model.

    A spec gets defaults and must be bounded. A status gets no defaults: a field that the operator
    left out of a status stays out. Nor do items of lists: tools that compare a list with the one in
    git, as Argo CD does, would find the default that the API server has filled in. The description
    has it instead. Raises SchemaError.
    """
    _check_described(model)
    raw = model.model_json_schema(schema_generator=_WithFactories)
    return _Rewriter(raw.pop("$defs", {}), spec).rewrite(raw, model.__name__)


def _check_described(model: type[BaseModel]) -> None:
    """Raise SchemaError for a field without a description, in this model or one below it."""
    for name, field in model.model_fields.items():
        if not field.description:
            raise SchemaError(f"{model.__name__}.{name}: write a docstring below the field")
        for below in _models_in(field.annotation):
            _check_described(below)


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models_in(argument)


def _number_format(schema: Schema) -> str | None:
    """Format of a number as Kubernetes has it: int32 for an integer whose bounds fit into it."""
    if schema.get("type") == "number":
        return "double"
    if schema.get("type") != "integer":
        return None
    fits = schema.get("minimum", -(2**63)) >= -(2**31) and schema.get("maximum", 2**63) < 2**31
    return "int32" if fits else "int64"


class _Rewriter:
    """Rewrites one model's JSON Schema; `where` is the path for error messages."""

    def __init__(self, definitions: dict[str, Schema], spec: bool) -> None:
        self.definitions = definitions
        self.spec = spec

    def rewrite(self, raw: Schema, where: str, in_list: bool = False) -> Schema:
        """Rewrite one node and everything below it."""
        raw = self._resolve(raw, where)
        if unknown := [k for k in raw if k not in (*KEPT, *REWRITTEN)]:
            raise SchemaError(f"{where}: {unknown} cannot be expressed in a structural schema")
        out: Schema = {}
        if "description" in raw:
            out["description"] = " ".join(raw["description"].split())
        out |= {key: raw[key] for key in KEPT if key in raw}
        if "const" in raw:
            out["enum"] = [raw["const"]]
        self._exclusive(raw, out, where)
        if number_format := _number_format(out):
            out["format"] = number_format
        default = raw.get("default")
        if self.spec and default is not None and in_list:
            text = f"{default:g}" if isinstance(default, float) else default
            out["description"] += f" Absent means {text}."
        elif self.spec and default is not None:
            out["default"] = default
        self._children(raw, out, where, in_list)
        self._check_bounds(out, where)
        return out

    def _resolve(self, raw: Schema, where: str) -> Schema:
        """The node with its reference resolved and `null` removed; its own keys take precedence."""
        if "anyOf" in raw:
            branches = [b for b in raw["anyOf"] if b != {"type": "null"}]
            if len(branches) != 1:
                raise SchemaError(f"{where}: a union cannot be expressed in a structural schema")
            rest = {key: value for key, value in raw.items() if key != "anyOf"}
            return self._resolve({**branches[0], **rest}, where)
        if "$ref" in raw:
            target = self.definitions[raw["$ref"].rsplit("/", 1)[1]]
            rest = {key: value for key, value in raw.items() if key != "$ref"}
            return self._resolve({**target, **rest}, where)
        if not {"type", ANY_VALUE, INT_OR_STRING} & raw.keys():
            raise SchemaError(f"{where}: give it a type; a CRD needs one for every field")
        return raw

    def _children(self, raw: Schema, out: Schema, where: str, in_list: bool) -> None:
        if "items" in raw:
            # Items without a name of their own, or whose order counts: one owner has the list.
            out.setdefault(LIST_TYPE, "atomic")
            out["items"] = self.rewrite(raw["items"], f"{where}[]", in_list=True)
        if isinstance(values := raw.get("additionalProperties"), dict):
            out["additionalProperties"] = self.rewrite(values, f"{where}{{}}", in_list)
        if "properties" in raw:
            if required := raw.get("required"):
                out["required"] = required
            out["properties"] = {
                name: self.rewrite(node, f"{where}.{name}", in_list)
                for name, node in raw["properties"].items()
            }

    def _exclusive(self, raw: Schema, out: Schema, where: str) -> None:
        # OpenAPI 3.0 has the exclusive bound as a flag next to the bound.
        for exclusive, bound in (("exclusiveMinimum", "minimum"), ("exclusiveMaximum", "maximum")):
            if exclusive in raw:
                # The API server rounds the bound to compare it with a value such as 0 or 1.
                if raw[exclusive] != int(raw[exclusive]):
                    raise SchemaError(
                        f"{where}: an exclusive bound must be an integer; make it inclusive"
                    )
                out |= {bound: raw[exclusive], exclusive: True}

    def _check_bounds(self, out: Schema, where: str) -> None:
        kind = out.get("type", "")
        wanted = BOUNDS.get(kind, ())
        if kind == "object" and "properties" in out:
            wanted = ()
        if self.spec and wanted and not any(key in out for key in wanted):
            raise SchemaError(f"{where}: give this {kind} a bound ({' or '.join(wanted)})")
        if kind == "object" and not ("properties" in out or "additionalProperties" in out):
            raise SchemaError(f"{where}: name its fields; the API server would drop unknown ones")
