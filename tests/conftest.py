"""Hooks of every suite: with CI=true a skipped test fails.

A machine without root or without Go cannot run every part, so tests skip there with a reason, which
the suite prints at its end. In CI a skip would go unnoticed, so it is a failure.
"""

from __future__ import annotations

import os
from collections.abc import Generator
from pathlib import Path

import pytest

SKIPPED = "FINETUNE_SUITE_SKIPPED"
"""Environment variable: file that gets the reasons of skipped tests, one in each line."""


def _fail_if_skipped(report: pytest.TestReport | pytest.CollectReport) -> None:
    if not report.skipped or hasattr(report, "wasxfail"):
        return
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
    if os.environ.get(SKIPPED):
        with Path(os.environ[SKIPPED]).open("a") as file:
            file.write(" ".join(str(reason).removeprefix("Skipped: ").split()) + "\n")
    if os.environ.get("CI") == "true":
        report.outcome = "failed"
        report.longrepr = f"{report.nodeid} was skipped, which CI does not allow: {reason}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Check a test that was skipped in its setup or its body."""
    report = yield
    _fail_if_skipped(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Check a module that was skipped as a whole."""
    report = yield
    _fail_if_skipped(report)
    return report
