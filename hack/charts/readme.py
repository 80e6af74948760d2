"""The chart's README: its values, with the comments of values.yaml as their descriptions."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

OPAQUE = frozenset({"profiles.pools"})
"""Maps of which the table has only the keys."""
COMMENTED_VALUE = re.compile(r"[\w./-]+:(\s|$)|- ")
"""The beginning of a line of YAML; prose has a space before the first colon."""
PIPE = "\\|"
HEAD = """<!-- Generated from values.yaml and Chart.yaml by `make charts`; edit those. -->

# finetune-operator

{description}. Needs Kubernetes {kubernetes}.

The custom resource definitions are a chart of their own, `finetune-operator-crds`. Install and
upgrade it first:

```
helm upgrade --install finetune-operator-crds charts/finetune-operator-crds \\
  --namespace finetune-system --create-namespace
helm upgrade --install finetune-operator charts/finetune-operator \\
  --namespace finetune-system --values my-values.yaml
```

To change one value of a release and keep the others, with the defaults of the new chart:

```
helm upgrade finetune-operator charts/finetune-operator --namespace finetune-system \\
  --reset-then-reuse-values --set replicas=2
```

[examples/](examples/) has values for OpenShift, GKE, EKS, Karpenter and clusters without internet;
[operations](../../docs/operations.md) explains them.

## Values

| Value | Default | Meaning |
|---|---|---|
"""


@dataclass(frozen=True)
class Value:
    """One key of values.yaml; `default` is absent for a map whose keys follow."""

    path: str
    comment: str
    default: str | None


def render_readme(values: str, chart: str) -> str:
    """The whole page, from the texts of values.yaml and Chart.yaml."""
    facts = yaml.safe_load(chart)
    kubernetes = facts["kubeVersion"].removeprefix(">=").removesuffix(".0-0")
    head = HEAD.format(description=facts["description"], kubernetes=f"{kubernetes} or newer")
    return head + "".join(map(_row, read_values(values)))


def read_values(text: str) -> list[Value]:
    """Every documented map and every value, in the order of the file; ValueError for a comment
    that looks like a value."""
    root = yaml.compose(text)
    assert isinstance(root, yaml.MappingNode)
    return list(_walk(root, yaml.safe_load(text), text.splitlines(), ""))


def _walk(
    node: yaml.MappingNode, values: dict[str, Any], lines: Sequence[str], prefix: str
) -> Iterator[Value]:
    for key, inner in node.value:
        path, default = f"{prefix}{key.value}", values[key.value]
        comment = _comment_above(lines, key.start_mark.line, key.start_mark.column)
        is_map = isinstance(inner, yaml.MappingNode) and inner.value and not inner.flow_style
        if path in OPAQUE:
            yield Value(path, comment, ", ".join(default))
        elif is_map:
            if comment:
                yield Value(path, comment, None)
            yield from _walk(inner, default, lines, f"{path}.")
        else:
            yield Value(path, comment, json.dumps(default))


def _comment_above(lines: Sequence[str], line: int, indent: int) -> str:
    """The lines that begin with # at the indent of the key, without a gap; ValueError if one of
    them is a value."""
    found: list[str] = []
    while line > 0 and lines[line - 1].startswith(" " * indent + "#"):
        text = lines[line - 1].strip().removeprefix("#").strip()
        if COMMENTED_VALUE.match(text):
            raise ValueError(
                f"values.yaml:{line}: {text!r} would be read as a description: "
                "make it a value with a default, or begin the line with another word"
            )
        found.insert(0, text)
        line -= 1
    return " ".join(found)


def _row(value: Value) -> str:
    default = "" if value.default is None else f"`{value.default}`"
    cells = (f"`{value.path}`", default, value.comment.replace("<", "&lt;"))
    return "".join(f"| {each.replace('|', PIPE)} " for each in cells) + "|\n"
