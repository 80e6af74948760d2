"""Improvements in words, and the failure of a tuned model that the gate does not let through."""

from finetune_api.evaluation_summary import EvaluationSummary, GateOutcome
from finetune_api.failure import Failure
from finetune_api.metrics import METRICS, Unit

_SUFFIXES: dict[Unit, str] = {"Percent": " %", "Nats": " nats"}
_HEADER = ("metric", "baseline", "required", "measured", "95 % interval", "result")


def format_value(value: float, unit: Unit) -> str:
    """A value with its unit; percentages to a tenth, others to four decimal places."""
    digits = 1 if unit == "Percent" else 4
    return f"{value:.{digits}f}{_SUFFIXES.get(unit, '')}"


def format_interval(low: float, high: float, unit: Unit) -> str:
    """An interval with its unit."""
    return f"{format_value(low, unit).removesuffix(_SUFFIXES.get(unit, ''))} to " + format_value(
        high, unit
    )


def gate_failure(summary: EvaluationSummary) -> Failure | None:
    """GateNotMet with a table of every rule; None where all rules passed."""
    if summary.passed:
        return None
    failed = [METRICS[outcome.metric].label for outcome in summary.gate if not outcome.passed]
    few = ", ".join(dict.fromkeys(filter(None, map(_name_limit, summary.gate))))
    more = (
        f" Where the measured value meets the requirement and its bound does not, chance may "
        f"explain the difference: hold out more rows and raise {few}."
        if few
        else ""
    )
    return Failure(
        reason="GateNotMet",
        message=f"the tuned model fails {len(failed)} of {len(summary.gate)} rules of "
        f"evaluation.gate ({', '.join(dict.fromkeys(failed))}):\n{gate_table(summary.gate)}",
        remedy="Read the answers in the evaluation report. Train longer, on more or better data, "
        f"or lower evaluation.gate.{more}",
    )


def _name_limit(outcome: GateOutcome) -> str | None:
    """The field that limits the rows of a rule that only the width of its interval fails."""
    if outcome.passed or outcome.measured is None or outcome.measured < outcome.required:
        return None
    is_of_answers = METRICS[outcome.metric].is_of_answers
    return "evaluation.generations" if is_of_answers else "evaluation.maxSamples"


def gate_table(gate: list[GateOutcome]) -> str:
    """The rules as a table in plain text, one line each."""
    rows = [_HEADER, *(_row(outcome) for outcome in gate)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def _row(outcome: GateOutcome) -> tuple[str, ...]:
    low, high, measured = outcome.low, outcome.high, outcome.measured
    return (
        outcome.metric,
        outcome.baseline,
        f"{outcome.statistic.lower()} of {format_value(outcome.required, outcome.unit)}",
        "nothing" if measured is None else format_value(measured, outcome.unit),
        "" if low is None or high is None else format_interval(low, high, outcome.unit),
        "passed" if outcome.passed else "failed",
    )
