"""Generator of docs/combinations.md, from the same table as the API server's rules."""

from collections.abc import Iterator

from finetune_api.combinations import (
    ALL_VALUES,
    FORMATS,
    RULES,
    SECTIONS,
    join_names,
    refusal_messages,
)
from finetune_api.prepare_rules import PREPARE_RULES

HEAD = """<!-- Generated from combinations.py and prepare_rules.py by `make crds`; edit those. -->

# Combinations

Which settings work together. The API server rejects the other combinations when the job is
applied. Some depend on the model, the data or the pool: such a job fails before training, and
`status.failure` says why. Every other combination works: `make matrix` trains every cell of the
first table, and each run of the tests trains so many of them that every pair of choices occurs.
"""
STRATEGY = "compute.strategy"


def render_page() -> str:
    """The whole page, in Markdown."""
    parts = [
        HEAD,
        "## Method, objective and strategy\n",
        "Strategies with which a method can train for an objective; `Auto` chooses among them.\n",
        "\n".join(_matrix()),
        "\n## Objective and data\n",
        "\n".join(_formats()),
        "\n## Settings that belong to one choice\n",
        "\n".join(_sections()),
        "\n## Rejected by the API server\n",
        "\n".join(_rules()),
        "\n## Refused before training\n",
        "\n".join(_prepare_rules()),
    ]
    return "\n".join(parts) + "\n"


def strategies(method: str, objective: str) -> list[str]:
    """Strategies that are allowed for a method and an objective with default settings."""
    spec = {"method": {"type": method}, "objective": objective}
    every = ALL_VALUES[STRATEGY]
    return [each for each in every if not refusal_messages({**spec, "compute": {"strategy": each}})]


def _matrix() -> Iterator[str]:
    objectives = ALL_VALUES["objective"]
    yield _row("Method", *objectives)
    yield _row(*["---"] * (len(objectives) + 1))
    for method in ALL_VALUES["method.type"]:
        yield _row(f"`{method}`", *(_cell(strategies(method, each)) for each in objectives))


def _cell(allowed: list[str]) -> str:
    return "all" if len(allowed) == len(ALL_VALUES[STRATEGY]) else ", ".join(allowed) or "refused"


def _formats() -> Iterator[str]:
    yield _row("Objective", "`dataset.format`")
    yield _row("---", "---")
    for objectives, formats in FORMATS.items():
        yield _row(join_names(objectives), " or ".join(f"`{each}`" for each in formats))


def _sections() -> Iterator[str]:
    yield _row("Section", "Only for")
    yield _row("---", "---")
    for path, owner, values in SECTIONS:
        yield _row(f"`{path}`", f"`{owner}` " + " or ".join(f"`{value}`" for value in values))


def _rules() -> Iterator[str]:
    yield _row("Refused", "Why, and what to do")
    yield _row("---", "---")
    shown_above = {"dataset.format", *(path for path, _, _ in SECTIONS)}
    for rule in RULES:
        if rule.field not in shown_above:
            combination = " and ".join(predicate.to_text() for predicate in rule.when)
            yield _row(combination, rule.message)


def _prepare_rules() -> Iterator[str]:
    yield _row("Refused", "Reason", "Why, and what to do")
    yield _row("---", "---", "---")
    for rule in PREPARE_RULES:
        yield _row(rule.when, f"`{rule.reason}`", rule.why)


def _row(*cells: str) -> str:
    return f"| {' | '.join(cell.replace('|', '&#124;') for cell in cells)} |"
