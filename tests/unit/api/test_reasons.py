"""The table of reasons has every reason that the code can produce, and no other."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest
from finetune_api.base import ConditionStatus
from finetune_api.jobstatus import Phase, StageState
from finetune_api.prepare_rules import PREPARE_RULES
from finetune_api.reasons import GROUPS, REASONS
from finetune_api.reasons.reason import Group, Reason

ROOT = Path(__file__).resolve().parents[3]
PACKAGES = (
    ROOT / "operator" / "finetune_api",
    ROOT / "operator" / "finetune_operator",
    ROOT / "trainer_image" / "finetune_trainer",
)
CALLS: dict[str, int | str] = {
    "UserError": 0,
    "RetryableError": 0,
    "StageError": 0,
    "LongRowError": 0,
    "RowError": 0,
    "Failure": "reason",
    "Stalled": 0,
    "RevisionFailure": 0,
    "Disruption": 0,
    "EventRecord": 1,
    "_report_problem": 1,
}
"""Callables that take a reason, and its position or keyword."""
COLLECTIONS = ("REASONS", "DISRUPTION_REASONS", "WAITING_REASONS")
"""Module-level constants of the operator that hold reasons: elements of a set, values of a map."""
CONDITIONS = ("jobs/reporting.py", "endpoints/status.py", "acceleratorprofiles/plan.py")
"""Modules that build conditions from tuples."""


def modules() -> dict[Path, ast.Module]:
    files = (file for package in PACKAGES for file in sorted(package.rglob("*.py")))
    return {file: ast.parse(file.read_text()) for file in files if file.parent.name != "reasons"}


MODULES = modules()


def constants() -> dict[str, list[ast.expr]]:
    """Module-level constants of all packages by name."""
    found: dict[str, list[ast.expr]] = {}
    for module in MODULES.values():
        for node in module.body:
            if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
                target = node.targets[0] if isinstance(node, ast.Assign) else node.target
                if isinstance(target, ast.Name):
                    found.setdefault(target.id, []).append(node.value)
    return found


CONSTANTS = constants()


def literals(node: ast.expr | None) -> Iterator[str]:
    """The string literals that an expression can have as its value."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    elif isinstance(node, ast.IfExp):
        yield from (*literals(node.body), *literals(node.orelse))
        if isinstance(node.test, ast.Compare) and isinstance(node.test.comparators[0], ast.Tuple):
            # `x if x in ("A", "B") else "C"`
            yield from (text for item in node.test.comparators[0].elts for text in literals(item))
    elif isinstance(node, ast.BoolOp):
        yield from (text for value in node.values for text in literals(value))
    elif isinstance(node, ast.Name) and node.id.isupper():
        yield from (text for value in CONSTANTS.get(node.id, ()) for text in literals(value))
    elif isinstance(node, ast.Call) and ast.unparse(node.func) == "REASONS.get":
        yield from literals(node.args[1])


def elements(name: str) -> Iterator[str]:
    """The reasons in a collection."""
    for node in CONSTANTS[name]:
        yield from elements_of(node)


def elements_of(node: ast.expr) -> Iterator[str]:
    inner = node.args[0] if isinstance(node, ast.Call) and node.args else node
    if isinstance(inner, ast.BinOp):
        yield from (*elements_of(inner.left), *elements_of(inner.right))
    elif isinstance(inner, ast.Name):
        yield from elements(inner.id)
    elif isinstance(inner, ast.Set | ast.Dict):
        for value in inner.elts if isinstance(inner, ast.Set) else inner.values:
            yield from literals(value)


def from_calls(module: ast.Module) -> Iterator[str]:
    for node in ast.walk(module):
        if isinstance(node, ast.Call):
            place = CALLS.get(ast.unparse(node.func).rsplit(".", 1)[-1])
            if isinstance(place, int) and len(node.args) > place:
                yield from literals(node.args[place])
            for keyword in node.keywords:
                if keyword.arg == "reason" and place is not None:
                    yield from literals(keyword.value)


def from_assignments(module: ast.Module) -> Iterator[str]:
    """Values of local variables called `reason`."""
    for node in ast.walk(module):
        if isinstance(node, ast.Assign) and len(node.targets) == 1:
            target, value = node.targets[0], node.value
            pairs = [(target, value)]
            if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
                pairs = list(zip(target.elts, value.elts, strict=True))
            for name, given in pairs:
                if isinstance(name, ast.Name) and name.id == "reason":
                    yield from literals(given)


def from_conditions(module: ast.Module) -> Iterator[str]:
    """Reasons in the tuples (type, status, reason, message) and (status, reason[, message])."""
    for node in ast.walk(module):
        if isinstance(node, ast.Tuple):
            given = node.elts
            if len(given) == 4 and "True False Unknown".find(next(literals(given[1]), "?")) >= 0:
                yield from literals(given[2])
            elif isinstance(given[0], ast.Name) or (
                isinstance(given[0], ast.Constant) and given[0].value in get_args(ConditionStatus)
            ):
                yield from (text for text in literals(given[1]) if text[:1].isupper())


def produced() -> set[str]:
    """Every reason that the code can write."""
    found = {*get_args(Phase), *get_args(StageState), *(rule.reason for rule in PREPARE_RULES)}
    for file, module in MODULES.items():
        found |= {*from_calls(module), *from_assignments(module)}
        if file.as_posix().endswith(CONDITIONS):
            found |= {*from_conditions(module)}
    for name in COLLECTIONS:
        reasons = {*elements(name)}
        assert reasons, f"no module has a collection {name} any more"
        found |= reasons
    return found - {""}


def test_every_reason_that_the_code_produces_is_in_the_table() -> None:
    missing = produced() - {reason.name for reason in REASONS}
    assert not missing, "add a row to a file of finetune_api/reasons/, and run `make crds`"


def test_the_table_has_no_reason_that_nothing_produces() -> None:
    ours = {reason.name for reason in REASONS if not reason.from_kubernetes}
    assert not ours - produced(), "remove the row from finetune_api/reasons/"


@pytest.mark.parametrize("group", GROUPS, ids=lambda group: group.title)
def test_a_group_is_sorted_and_has_each_reason_once(group: Group) -> None:
    names = [reason.name for reason in group.reasons]
    assert names == sorted(set(names), key=str.lower)


@pytest.mark.parametrize("reason", REASONS, ids=lambda reason: reason.name)
def test_a_reason_is_explained_in_sentences(reason: Reason) -> None:
    assert reason.meaning.endswith(".")
    assert not reason.remedy or reason.remedy.endswith(".")
    assert "|" not in reason.meaning + reason.remedy
