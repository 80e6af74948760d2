"""Generator of docs/reasons.md, from the tables of reasons."""

from collections.abc import Iterator

from finetune_api.reasons import GROUPS
from finetune_api.reasons.reason import Group

HEAD = """<!-- Generated from finetune_api.reasons by `make crds`; edit that. -->

# Reasons

Every reason in a condition, an event or a failure of a FineTuneJob, a ModelEndpoint ("both") or an
AcceleratorProfile. The message next to the reason has the details: names, files, lines and numbers.

```
kubectl describe ftj NAME
kubectl get ftj NAME -o jsonpath='{.status.failure}'
```
"""


def render_page() -> str:
    """The whole page, in Markdown."""
    return "\n".join([HEAD, *(line for group in GROUPS for line in _section(group))])


def _section(group: Group) -> Iterator[str]:
    yield f"## {group.title}\n"
    if group.intro:
        yield f"{group.intro}\n"
    yield "| Reason | Where | Meaning | What to do |"
    yield "|---|---|---|---|"
    for reason in group.reasons:
        remedy = reason.remedy or "Nothing."
        yield f"| `{reason.name}` | {reason.where} | {reason.meaning} | {remedy} |"
    yield ""
