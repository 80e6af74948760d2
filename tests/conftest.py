"""What every suite shares: with CI=true nothing may be left out.

A machine without root or without Go cannot run every part, so tests skip with a reason there. In CI
a skip would be a hole that nobody sees, so it is a failure.
"""

from __future__ import annotations

import os
from collections.abc import Generator

import pytest


def _refuse(report: pytest.TestReport | pytest.CollectReport) -> None:
    skipped_on_purpose = hasattr(report, "wasxfail")
    if report.skipped and not skipped_on_purpose and os.environ.get("CI") == "true":
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
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
