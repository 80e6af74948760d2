"""What the demo ends with: demo-report.json for machines, the same as tables for people."""

from __future__ import annotations

import json
import platform
import subprocess
from pathlib import Path
from typing import Any

from finetune_api.metrics import METRICS

ROOT = Path(__file__).resolve().parents[2]
WIDTH = 100


def stage_seconds(job: dict[str, Any]) -> dict[str, float]:
    """Seconds of each stage from the job's own status."""
    out: dict[str, float] = {}
    for stage in job["status"].get("stages", []):
        if stage.get("startedAt") and stage.get("finishedAt"):
            out[stage["name"]] = _seconds_between(stage["startedAt"], stage["finishedAt"])
    return out


def _seconds_between(start: str, end: str) -> float:
    from datetime import datetime

    parsed = [datetime.fromisoformat(text.replace("Z", "+00:00")) for text in (start, end)]
    return (parsed[1] - parsed[0]).total_seconds()


def commit() -> str | None:
    """The checkout's commit, when it is one."""
    done = subprocess.run(
        ["git", "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    )
    return done.stdout.strip() or None


def build(
    job: dict[str, Any],
    steps: dict[str, float],
    total: float,
    questions: list[dict[str, Any]],
    versions: dict[str, str],
) -> dict[str, Any]:
    """The report as data."""
    status = job["status"]
    return {
        "job": {"name": job["metadata"]["name"], "phase": status["phase"], "spec": job["spec"]},
        "seconds": {"total": total, "steps": steps, "stages": stage_seconds(job)},
        "plan": status.get("plan"),
        "model": status.get("model"),
        "data": status.get("data"),
        "progress": status.get("progress"),
        "evaluation": status.get("evaluation"),
        "artifact": status.get("artifact"),
        "endpoint": status.get("endpoint"),
        "questions": questions,
        "parity": all(item["equal"] for item in questions),
        "versions": {**versions, "commit": commit()},
        "machine": {"system": platform.platform(), "cores": _cores()},
    }


def _cores() -> int:
    import os

    return len(os.sched_getaffinity(0))


def write(report: dict[str, Any], path: Path) -> None:
    """Write the machine-readable report."""
    path.write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n")


def show(report: dict[str, Any]) -> str:
    """The report as text."""
    lines = ["", "Times (s)"]
    for name, seconds in report["seconds"]["steps"].items():
        lines.append(f"  {name:<46} {seconds:8.1f}")
    for name, seconds in report["seconds"]["stages"].items():
        lines.append(f"    stage {name:<38} {seconds:8.1f}")
    lines += [f"  {'total':<46} {report['seconds']['total']:8.1f}", "", *_plan(report)]
    lines += ["", *_evaluation(report["evaluation"]), ""]
    for item in report["questions"]:
        lines += [
            f"Q  {item['question']}",
            *_wrapped("base ", item["base"]),
            *_wrapped("tuned", item["tuned"]),
            f"   the endpoint answered {'the same' if item['equal'] else 'SOMETHING ELSE'} as"
            " evaluation recorded",
            "",
        ]
    return "\n".join(lines)


def _plan(report: dict[str, Any]) -> list[str]:
    plan, progress = report["plan"], report["progress"] or {}
    return [
        "Plan",
        f"  {plan['nodes']} nodes x {plan['gpusPerNode']} {plan['device']} processes,"
        f" {plan['strategy']} ({progress.get('engine', 'engine unknown')},"
        f" world size {progress.get('worldSize', '?')}),"
        f" batch {plan['batchSize']} = {plan['microBatchSize']} x"
        f" {plan['gradientAccumulation']} x {plan['worldSize']}, {plan['totalSteps']} steps",
    ]


def _evaluation(evaluation: dict[str, Any]) -> list[str]:
    lines = [f"Evaluation{'':<18}{'base':>10}{'tuned':>10}{'better by':>12}{'95 % interval':>20}"]
    for found in evaluation["comparisons"]:
        interval = f"{found['low']:.3f} to {found['high']:.3f}"
        lines.append(
            f"  {METRICS[found['metric']].label:<26}{found['value']:>10.3f}{found['tuned']:>10.3f}"
            f"{found['improvement']:>12.3f}{interval:>20}"
        )
        if "relativePercent" in found:
            interval = f"{found['relativeLowPercent']:.1f} to {found['relativeHighPercent']:.1f} %"
            lines.append(f"{'':<48}{found['relativePercent']:>10.1f} %{interval:>20}")
    return lines


def _wrapped(label: str, text: str) -> list[str]:
    import textwrap

    body = textwrap.wrap(" ".join(text.split()), WIDTH - 10) or ["(nothing)"]
    return [f"   {label if index == 0 else '     '}  {part}" for index, part in enumerate(body)]
