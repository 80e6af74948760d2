"""What every suite shares: with CI=true nothing may be left out.

A machine without root or without Go cannot run every part, so tests skip with a reason there, which
the suite repeats at its end. In CI a skip would be a hole that nobody sees, so it is a failure.
"""

from __future__ import annotations

import os
from collections.abc import Generator
from pathlib import Path

import pytest

# The file into which the suite wants the reasons of skipped tests, one per line.
SKIPPED = "FINETUNE_SUITE_SKIPPED"


def _refuse(report: pytest.TestReport | pytest.CollectReport) -> None:
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
    """A test that was skipped while it was set up or run."""
    report = yield
    _refuse(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """A module that was skipped as a whole."""
    report = yield
    _refuse(report)
    return report
