"""Generator of docs/reference.md: every field of every kind, from the same schemas as the CRDs.

One table for the spec, which users write, and one for the status, which the operator writes.
"""

import json
from collections.abc import Iterator
from typing import Any

from finetune_api import API_VERSION
from finetune_api.base import INT_OR_STRING
from finetune_api.schema import Schema

HEAD = f"""<!-- Generated from the models by `make crds`; edit those. -->

# API reference

All kinds are of `{API_VERSION}`. `kubectl explain finetunejob.spec` shows the same in a terminal.
A list is written `train[]`, a map `nodeSelector{{}}`.
"""
SPEC_HEAD = "| Field | Type | Default | Meaning |\n|---|---|---|---|"
STATUS_HEAD = "| Field | Type | Meaning |\n|---|---|---|"


def render_section(title: str, facts: str, schema: Schema) -> str:
    """The section of one kind; `facts` is a line on its names and scope."""
    properties = schema["properties"]
    parts = [f"## {title}", schema["description"], facts, "### spec", SPEC_HEAD]
    out = "\n\n".join(parts) + "\n" + "\n".join(_spec_rows(properties["spec"]))
    if rules := list(dict.fromkeys(_rules(schema, ""))):
        out += "\n\nRejected by the API server:\n\n" + "\n".join(f"- {each}" for each in rules)
    if "status" in properties:
        rows = "\n".join(_status_rows(properties["status"]))
        out += f"\n\n### status\n\n{STATUS_HEAD}\n{rows}"
    return out + "\n"


def _spec_rows(schema: Schema) -> Iterator[str]:
    for path, field, required in _fields(schema, ""):
        default = "required" if required else _default(field)
        yield f"| `{path}` | {_type(field)} | {default} | {_cell(field['description'])} |"


def _status_rows(schema: Schema) -> Iterator[str]:
    for path, field, _ in _fields(schema, ""):
        yield f"| `{path}` | {_type(field)} | {_cell(field['description'])} |"


def _fields(schema: Schema, path: str) -> Iterator[tuple[str, Schema, bool]]:
    """Every field below a schema in order: its path, its schema, whether it is required."""
    for name, field in schema.get("properties", {}).items():
        here = f"{path}.{name}" if path else name
        suffix = "[]" if "items" in field else "{}" if "additionalProperties" in field else ""
        yield here + suffix, field, name in schema.get("required", ())
        yield from _fields(field.get("items", field), here + suffix)


def _rules(schema: Schema, path: str) -> Iterator[str]:
    for rule in schema.get("x-kubernetes-validations", ()):
        # A message about a scalar has no subject: the field's name becomes it.
        yield _cell(f"`{path}` {rule['message']}" if _of_scalar(schema) else rule["message"])
    for name, field in schema.get("properties", {}).items():
        here = f"{path}.{name}" if path else name
        if name != "status":
            yield from _rules(field.get("items", field), here)


def _of_scalar(schema: Schema) -> bool:
    return schema.get("type") not in ("object", "array")


def _type(field: Schema) -> str:
    if "items" in field:
        return f"list of {_type(field['items'])}{_range(field, 'Items')}"
    if isinstance(values := field.get("additionalProperties"), dict):
        return f"map of {_type(values)}"
    if "enum" in field:
        return ", ".join(f"`{value}`" for value in field["enum"])
    if field.get("format") == "date-time":
        return "time"
    if INT_OR_STRING in field:
        return "integer or string"
    return str(field.get("type", "any value")) + _limits(field)


def _limits(field: Schema) -> str:
    least, most = field.get("minimum"), field.get("maximum")
    words = []
    if least is not None:
        words.append(f"{'>' if field.get('exclusiveMinimum') else '≥'} {least}")
    if most is not None:
        words.append(f"{'<' if field.get('exclusiveMaximum') else '≤'} {most}")
    return f" {', '.join(words)}" if words else ""


def _range(field: Schema, what: str) -> str:
    least, most = field.get(f"min{what}", 0), field.get(f"max{what}")
    if most is None:
        return ""
    return f" ({least})" if least == most else f" ({least} to {most})"


def _default(field: Schema) -> str:
    value: Any = field.get("default")
    return "" if value is None or value == {} else f"`{json.dumps(value)}`"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")
