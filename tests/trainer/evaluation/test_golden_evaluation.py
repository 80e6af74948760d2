"""A model with planted behaviour, whose losses, answers, intervals and verdicts are known exactly.

The model is a lookup table: its hidden state is the last token, and its head gives one next token a
logit of SURENESS and every other token 0. So it gives the same answer to every prompt, and the loss
of every token follows from one formula.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from finetune_api.evaluation_summary import (
    ChatMessage,
    EvaluationSummary,
    MetricComparison,
    ProbeRecord,
)
from finetune_api.finetunejob import FineTuneJobSpec
from finetune_api.gate_report import gate_failure
from finetune_api.metrics import METRICS
from finetune_api.stage_result import StageResult
from finetune_trainer.data.token_store import IGNORED, TokenizedSample, TokenStore
from finetune_trainer.data.tokenizer import load_tokenizer
from finetune_trainer.evaluation import model_measurement
from finetune_trainer.evaluation.comparison import Measurements, compare_all, summarise
from finetune_trainer.evaluation.held_out_loss import open_held_out
from finetune_trainer.evaluation.metric_choice import choose_metrics
from finetune_trainer.evaluation.prompts import HeldOutPrompt
from finetune_trainer.generation.greedy import tokenize_messages
from finetune_trainer.metrics.paired_bootstrap import expanded_tail
from finetune_trainer.runtime.stage import termination_message
from finetune_trainer.runtime.telemetry import Report

from tests.trainer.tiny import VOCABULARY

SURENESS = 9.0
COMMON, RARE, NEITHER = " protocol", " language", " network"
ROWS, RARE_ROWS = 40, 30
"""References are RARE in RARE_ROWS of the rows, and COMMON in the others."""
SURE = math.log1p((VOCABULARY - 1) * math.exp(-SURENESS))
"""Nats of a token that the model gives its logit."""
SURPRISED = SURE + SURENESS
"""Nats of any other token."""
GATE: list[dict[str, Any]] = [
    {"metric": "loss", "minRelativeImprovement": "20%"},
    {"metric": "loss", "minImprovement": 4, "statistic": "Bound"},
    {"metric": "accuracy", "minImprovement": 0.1},
    {"metric": "accuracy", "minImprovement": 0.5, "statistic": "Estimate"},
    {"metric": "macroF1", "minImprovement": 0.1, "baseline": "silly"},
]


def make_lookup_model(tokenizer: Any, answer: str) -> Any:
    """A model that answers every prompt with the one token `answer` and ends its turn."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=VOCABULARY,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        head_dim=8,
        rms_norm_eps=1e-6,
        tie_word_embeddings=False,
        pad_token_id=0,
        eos_token_id=2,
    )
    model = LlamaForCausalLM(config).eval()
    next_tokens = {find_token(tokenizer, "\n"): find_token(tokenizer, answer)}
    next_tokens |= {find_token(tokenizer, each): 2 for each in (COMMON, RARE, NEITHER)}
    with torch.no_grad():
        model.model.embed_tokens.weight.copy_(torch.eye(VOCABULARY))
        model.model.layers[0].self_attn.o_proj.weight.zero_()
        model.model.layers[0].mlp.down_proj.weight.zero_()
        model.lm_head.weight.zero_()
        # The norm makes the one of the hidden state 1 / sqrt(1 / width + epsilon).
        for token, after in next_tokens.items():
            model.lm_head.weight[after, token] = SURENESS * math.sqrt(1 / VOCABULARY + 1e-6)
    return model


def find_token(tokenizer: Any, text: str) -> int:
    (token,) = tokenizer(text, add_special_tokens=False)["input_ids"]
    return int(token)


@pytest.fixture(scope="module")
def summary(tiny_model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> EvaluationSummary:
    """The base answers COMMON, or NEITHER under another prompt, and the tuned model RARE."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("golden")
    tokenizer = load_tokenizer(tiny_model_folder)
    references = [RARE] * RARE_ROWS + [COMMON] * (ROWS - RARE_ROWS)
    messages = [{"role": "user", "content": "What is it?"}]
    input_ids = tokenize_messages(tokenizer, messages)
    samples = []
    for reference in references:
        labels = [find_token(tokenizer, reference), 2]
        samples.append(TokenizedSample(input_ids + labels, [IGNORED] * len(input_ids) + labels))
    TokenStore.write(folder / "eval", samples, [[index] for index in range(ROWS)])
    spec = FineTuneJobSpec.model_validate(
        {
            "model": {"uri": "pvc://models/tiny"},
            "dataset": {"train": [{"uri": "pvc://data/rows.jsonl"}]},
            "evaluation": {
                "metrics": ["loss", "perplexity", "accuracy", "macroF1", "microF1", "chrF"],
                "baselines": [{"name": "silly", "systemPrompt": "Be silly."}],
                "gate": GATE,
            },
        }
    )
    held_out = open_held_out(spec, folder / "eval")
    prompts = [HeldOutPrompt(messages, reference, input_ids) for reference in references]
    progress = model_measurement.ItemProgress(Report("evaluate", 1), 1)

    def measure(answer: str) -> model_measurement.ModelMeasurement:
        model = make_lookup_model(tokenizer, answer)
        return model_measurement.measure_model(
            model, tokenizer, held_out, prompts, spec, progress, answer
        )

    base, tuned = measure(COMMON), measure(RARE)
    base = model_measurement.ModelMeasurement(
        base.outputs, base.answers, {"silly": measure(NEITHER).answers}
    )
    measurements = Measurements(
        losses=model_measurement.pair_losses(held_out, base, tuned),
        preferences=None,
        rewards=None,
        answered=model_measurement.pair_answers(prompts, base, tuned),
    )
    choice = choose_metrics(spec, references)
    assert choice.labels == (RARE, COMMON)
    return summarise(compare_all(measurements, choice, spec), measurements, spec)


def test_losses_follow_from_the_table(summary: EvaluationSummary) -> None:
    loss, perplexity = summary.find("loss"), summary.find("perplexity")
    assert loss is not None
    assert perplexity is not None
    # Every answer has two tokens, and the second is always expected.
    base = SURE + SURENESS * RARE_ROWS / (2 * ROWS)
    tuned = SURE + SURENESS * (ROWS - RARE_ROWS) / (2 * ROWS)
    assert loss.value == pytest.approx(base, rel=1e-4)
    assert loss.tuned == pytest.approx(tuned, rel=1e-4)
    assert loss.improvement == pytest.approx(base - tuned, rel=1e-4)
    assert perplexity.value == pytest.approx(math.exp(base), rel=1e-3)
    assert summary.tokens == 2 * ROWS


def test_metrics_of_classes_follow_from_the_counts(summary: EvaluationSummary) -> None:
    accuracy, macro, micro = (summary.find(name) for name in ("accuracy", "macroF1", "microF1"))
    assert accuracy is not None
    assert macro is not None
    assert micro is not None
    assert (accuracy.value, accuracy.tuned) == (0.25, 0.75)
    # Of 40 answers "protocol" 10 are right, and none is "language"; and the other way round.
    assert macro.value == pytest.approx((2 * 10 / (40 + 10) + 0) / 2)
    assert macro.tuned == pytest.approx((2 * 30 / (40 + 30) + 0) / 2, rel=1e-5)
    assert (micro.value, micro.tuned) == (0.25, 0.75)
    # 30 answers only the tuned model gets right, 10 only the base.
    tail = sum(math.comb(40, count) for count in range(11))
    assert accuracy.p_value == pytest.approx(2 * tail / 2**40, rel=1e-5)


def test_an_interval_is_that_of_the_exact_distribution(summary: EvaluationSummary) -> None:
    accuracy = summary.find("accuracy")
    assert accuracy is not None
    # With the two added answers 31 of 42 are wins, and 11 losses: a resample has a binomial number.
    items, wins = ROWS + 2, RARE_ROWS + 1
    shares = [
        math.comb(items, count) * (wins / items) ** count * (1 - wins / items) ** (items - count)
        for count in range(items + 1)
    ]
    tail = expanded_tail(items)
    low, high = np.searchsorted(np.cumsum(shares), [tail, 1 - tail])
    step = 2 / items
    assert accuracy.low == pytest.approx(2 * low / items - 1, abs=1.01 * step)
    assert accuracy.high == pytest.approx(2 * high / items - 1, abs=1.01 * step)


def test_the_verdicts_of_the_gate_are_known(summary: EvaluationSummary) -> None:
    assert [outcome.passed for outcome in summary.gate] == [True, False, True, True, True]
    silly = summary.gate[-1]
    assert (silly.baseline, silly.unit) == ("silly", "Fraction")
    assert silly.measured == pytest.approx(3 / 7, rel=1e-5)
    failure = gate_failure(summary)
    assert failure is not None
    assert failure.message.startswith("the tuned model fails 1 of 5 rules of evaluation.gate (held")
    assert summary.best_prompt is not None
    assert summary.best_prompt.to_wire() == {
        "metric": "accuracy",
        "baseline": "base",
        "isBeaten": True,
    }


def failed_result(summary: EvaluationSummary) -> StageResult:
    """What evaluate reports of a model that failed its gate."""
    return StageResult(
        stage="evaluate",
        attempt=1,
        outcome="Failed",
        failure=gate_failure(summary),
        evaluation=summary,
        report="report/evaluation.json",
        report_digest="sha256:" + "0" * 64,
    )


def test_the_largest_evaluation_fits_into_a_termination_message(
    summary: EvaluationSummary,
) -> None:
    metrics = ["loss", "perplexity", "accuracy", "macroF1", "microF1", "exactMatch", "bleu", "chrF"]
    loss, accuracy = summary.find("loss"), summary.find("accuracy")
    assert loss is not None
    assert accuracy is not None
    compared = [
        (loss if name in ("loss", "perplexity") else accuracy).model_copy(update={"metric": name})
        for name in metrics
    ]
    prompted = [
        accuracy.model_copy(update={"baseline": "a-name-of-twenty-five-" + str(number) * 3})
        for number in range(3)
    ]
    full = summary.model_copy(
        update={"comparisons": [*compared, *prompted], "gate": [summary.gate[-1]] * 8}
    )
    result = failed_result(full)
    message = termination_message(result)
    assert len(message) <= 4096
    kept = EvaluationSummary.model_validate(json.loads(message)["evaluation"])
    # The operator writes the message again, from the outcomes.
    assert gate_failure(kept) == gate_failure(full)
    assert len(kept.comparisons) >= 8
    # A model that passes has a probe of 1,500 bytes, for which other baselines make room.
    probe = ProbeRecord(
        messages=[ChatMessage(role="user", content="q" * 1200)], answer="a" * 200, max_tokens=32
    )
    passed = full.model_copy(update={"gate": full.gate[:3]})
    succeeded = {"outcome": "Succeeded", "failure": None, "probe": probe, "evaluation": passed}
    message = termination_message(result.model_copy(update=succeeded))
    assert len(message) <= 4096
    assert json.loads(message)["probe"]["answer"]
    assert len(json.loads(message)["evaluation"]["comparisons"]) >= 8


def test_the_longest_names_and_figures_leave_the_outcomes_of_the_gate(
    summary: EvaluationSummary,
) -> None:
    long = -1.23457e-05
    figures = dict.fromkeys(("value", "tuned", "improvement", "low", "high"), long)
    relative = {f"relative_{each}percent": long for each in ("", "low_", "high_")}
    names = ["b" * 39 + str(number) for number in range(3)]
    measured = [name for name, metric in METRICS.items() if "SFT" in metric.objectives]
    compared = [
        MetricComparison(
            metric=name,
            p_value=1.23457e-05 if name in ("accuracy", "exactMatch") else None,
            **figures,
            **(relative if METRICS[name].is_ratio_scale else {}),
        )
        for name in measured
    ]
    compared += [
        MetricComparison(metric="accuracy", baseline=name, p_value=1.23457e-05, **figures)
        for name in names
    ]
    gate = [
        summary.gate[0].model_copy(
            update={
                "metric": measured[2 + number],
                "baseline": names[number % 3],
                "unit": "Fraction",
                "statistic": "Estimate",
                "passed": False,
                **dict.fromkeys(("required", "measured", "low", "high"), long),
            }
        )
        for number in range(8)
    ]
    full = summary.model_copy(update={"comparisons": compared, "gate": gate, "passed": False})
    result = failed_result(full)
    message = termination_message(result)
    assert len(message) <= 4096
    kept = EvaluationSummary.model_validate(json.loads(message)["evaluation"])
    assert kept.gate == gate
    assert kept.warnings[-1].startswith("comparisons of ")
    assert "only in the evaluation report" in kept.warnings[-1]
