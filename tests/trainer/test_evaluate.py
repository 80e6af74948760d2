"""Evaluate and export on the tiny model: the evaluated weights are the exported ones."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from finetune_api.evaluation_summary import EvaluationSummary, MetricComparison
from finetune_api.progress import Progress
from finetune_api.protocol import ExitCode
from finetune_api.run_config import RunConfig
from finetune_api.stage_result import StageResult
from finetune_trainer import evaluate, export, methods
from finetune_trainer.checkpointing.artifact import make_manifest
from finetune_trainer.data.json_lines import write_json_lines
from finetune_trainer.data.token_store import TokenStore
from finetune_trainer.data.tokenizer import decode_tokens, load_tokenizer
from finetune_trainer.distributed.rank_reporter import RankReporter
from finetune_trainer.evaluation import merge
from finetune_trainer.evaluation import parity_probe as probing
from finetune_trainer.evaluation.model_card import render_model_card
from finetune_trainer.generation import greedy
from finetune_trainer.metrics.exact_match import normalise_text
from finetune_trainer.runtime.telemetry import RankFile, Report
from finetune_trainer.training import worker
from torch import distributed as dist

from tests.trainer.jobs import NoStop, environment, make_run, write_data, write_run
from tests.trainer.tiny import tiny_model, tiny_rows

pytestmark = pytest.mark.filterwarnings("default")

EVALUATION: dict[str, Any] = {
    "maxSamples": 10,
    "generations": 6,
    "maxNewTokens": 24,
    "gate": [{"metric": "loss", "minRelativeImprovement": "5%"}],
    "baselines": [
        {"name": "polite", "systemPrompt": "Answer in one sentence."},
        {"name": "few-shot", "examples": 2},
    ],
}
STEPS = 60


def bf16_model(folder: Path) -> Path:
    """The tiny model saved in bf16, as most models are."""
    tiny_model(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "dtype": "bfloat16"}))
    model = methods.load_base_model(folder, torch.bfloat16)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """This process as the only rank of a process group."""
    meeting = tmp_path_factory.mktemp("meeting") / "store"
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.fixture(scope="module", params=["LoRA", "Full"])
def job(
    alone: None, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path, str]:
    """A trained job: its root, its base model and its method."""
    root = tmp_path_factory.mktemp(request.param)
    model = bf16_model(root / "models" / "tiny")
    write_data(root / "job" / "data", model)
    shown = [
        {"messages": [{"role": "user", "content": row["prompt"]}], "reference": row["completion"]}
        for row in tiny_rows(2, seed=9)
    ]
    write_json_lines(root / "job" / "data" / "examples.jsonl", shown)
    run = make_run(root, model, method=request.param, world_size=1, steps=STEPS)
    finished, _ = worker.train(run, RankReporter(RankFile(root, 0)), NoStop())
    assert finished
    return root, model, request.param


def run_for(job: tuple[Path, Path, str], stage: str, **more: Any) -> RunConfig:
    root, model, method = job
    more = {"evaluation": EVALUATION, **more}
    return make_run(root, model, stage=stage, method=method, world_size=1, steps=STEPS, **more)


@pytest.fixture(scope="module")
def evaluated(job: tuple[Path, Path, str]) -> tuple[StageResult, Progress]:
    report = Report("evaluate", 1)
    return evaluate.evaluate(run_for(job, "evaluate"), report), report.snapshot()


@pytest.fixture(scope="module")
def exported(
    job: tuple[Path, Path, str], evaluated: tuple[StageResult, Progress]
) -> tuple[StageResult, Path]:
    run = run_for(job, "export").model_copy(update={"evaluation": evaluated[0].evaluation})
    return export.export(run, Report("export", 1)), job[0] / "artifact"


def test_the_tuned_model_is_better_and_passes_the_gate(
    evaluated: tuple[StageResult, Progress],
) -> None:
    result, progress = evaluated
    assert result.outcome == "Succeeded"
    assert result.evaluation is not None
    loss = result.evaluation.find("loss")
    assert loss is not None
    assert loss.tuned < 0.95 * loss.value
    assert 0 < loss.low < loss.improvement < loss.high
    low, high = loss.relative_low_percent, loss.relative_high_percent
    assert low is not None
    assert high is not None
    assert loss.relative_percent is not None
    assert 5 < low < loss.relative_percent < high
    assert result.evaluation.gate[0].passed
    assert result.evaluation.generations == 6
    assert progress.step == progress.total_steps == 2 * (10 + 6) + 2 * 6


def test_the_loss_is_weighted_by_tokens(
    job: tuple[Path, Path, str], evaluated: tuple[StageResult, Progress]
) -> None:
    root, folder, _ = job
    model = methods.load_base_model(folder, torch.float32).eval()
    store = TokenStore.open(root / "job" / "data" / "eval")
    chosen = np.random.default_rng(42).permutation(store.sequence_count)[:10]
    total, count = 0.0, 0
    for index in chosen:
        row = store.sequence(int(index))
        ids = torch.from_numpy(row.input_ids.astype(np.int64))[None]
        labels = torch.from_numpy(row.labels.astype(np.int64))[1:]
        with torch.no_grad():
            logits = model(input_ids=ids).logits[0, :-1]
        total += torch.nn.functional.cross_entropy(logits, labels, reduction="sum").item()
        count += int((labels != -100).sum())
    assert evaluated[0].evaluation is not None
    assert evaluated[0].evaluation.tokens == count
    loss = evaluated[0].evaluation.find("loss")
    assert loss is not None
    assert loss.value == pytest.approx(total / count, rel=1e-5)


def test_the_report_holds_every_example_and_answer(
    job: tuple[Path, Path, str], evaluated: tuple[StageResult, Progress]
) -> None:
    result = evaluated[0]
    assert result.report is not None
    data = (job[0] / "job" / result.report).read_bytes()
    assert result.report_digest == f"sha256:{hashlib.sha256(data).hexdigest()}"
    body = json.loads(data)
    assert len(body["examples"]) == 10
    assert result.evaluation is not None
    mean = sum(e["tunedLoss"] for e in body["examples"]) / sum(
        e["weight"] for e in body["examples"]
    )
    loss = result.evaluation.find("loss")
    assert loss is not None
    assert mean == pytest.approx(loss.tuned, rel=1e-5)
    prompts = (job[0] / "job" / "data" / "eval.jsonl").read_text()
    for sample in body["samples"]:
        assert sample["baselines"].keys() == {"polite", "few-shot"}
        assert json.dumps(sample["reference"]) in prompts
        assert sample["tuned"]["tokens"] <= 24


def test_every_baseline_is_compared_with_the_tuned_model(
    job: tuple[Path, Path, str], evaluated: tuple[StageResult, Progress]
) -> None:
    summary = evaluated[0].evaluation
    assert summary is not None
    found = {(each.metric, each.baseline): each for each in summary.comparisons}
    assert list(found)[-2:] == [("rougeL", "polite"), ("rougeL", "few-shot")]
    assert len({each.tuned for (metric, _), each in found.items() if metric == "rougeL"}) == 1
    assert summary.best_prompt is not None
    best = max((each for (metric, _), each in found.items() if metric == "rougeL"), key=base_value)
    assert found["rougeL", summary.best_prompt.baseline].value == best.value
    body = json.loads((job[0] / "job" / "report" / "evaluation.json").read_bytes())
    compared = {(each["metric"], each["baseline"]) for each in body["comparisons"]}
    names = ("base", "polite", "few-shot")
    assert compared == {
        ("loss", "base"),
        *((metric, name) for metric in ("rougeL", "exactMatch") for name in names),
    }


def base_value(comparison: MetricComparison) -> float:
    return comparison.value


def test_a_missed_gate_fails_the_job_with_figures(
    job: tuple[Path, Path, str], evaluated: tuple[StageResult, Progress], tmp_path: Path
) -> None:
    rules = [
        {"metric": "loss", "minRelativeImprovement": "99.5%"},
        {"metric": "rougeL", "minImprovement": -1, "statistic": "Estimate"},
        {"metric": "exactMatch", "minImprovement": 1, "statistic": "Estimate"},
    ]
    run = run_for(job, "evaluate", attempt=2, evaluation={**EVALUATION, "gate": rules})
    env = environment(
        FINETUNE_RUN_CONFIG=str(write_run(run, tmp_path / "run.json")),
        FINETUNE_TERMINATION_PATH=str(tmp_path / "result.json"),
        FINETUNE_TELEMETRY_PORT="0",
    )
    command = [sys.executable, "-m", "finetune_trainer.evaluate"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == ExitCode.USER_ERROR, done.stderr[-3000:]
    result = StageResult.model_validate_json((tmp_path / "result.json").read_bytes())
    assert result.outcome == "Failed"
    assert result.failure is not None
    assert result.failure.reason == "GateNotMet"
    first, header, *rows = result.failure.message.split("\n")
    assert first == (
        "the tuned model fails 2 of 3 rules of evaluation.gate (held-out loss, exact match):"
    )
    assert header.split()[:4] == ["metric", "baseline", "required", "measured"]
    assert rows[0].startswith("loss        base      bound of 99.5 %")
    assert [row.split()[-1] for row in rows] == ["failed", "passed", "failed"]
    assert result.probe is None
    assert result.evaluation is not None
    assert [outcome.passed for outcome in result.evaluation.gate] == [False, True, False]
    assert not result.evaluation.passed


def test_exported_weights_are_bit_for_bit_the_evaluated_ones(
    job: tuple[Path, Path, str], exported: tuple[StageResult, Path]
) -> None:
    evaluated = merge.load_tuned_model(run_for(job, "evaluate"), torch.float32)
    served = methods.load_base_model(exported[1], torch.float32)
    assert methods.saved_dtype(exported[1]) == torch.bfloat16
    weights = dict(evaluated.named_parameters())
    assert weights.keys() == dict(served.named_parameters()).keys()
    for name, weight in served.named_parameters():
        assert torch.equal(weight, weights[name]), name


def test_merged_weights_answer_like_base_plus_adapter(job: tuple[Path, Path, str]) -> None:
    root, folder, method = job
    if method != "LoRA":
        output = methods.load_base_model(root / "job" / "output", torch.float32)
        merged = merge.load_tuned_model(run_for(job, "evaluate"), torch.float32)
        pairs = zip(output.parameters(), merged.parameters(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)
        return
    from peft import PeftModel

    base = methods.load_base_model(folder, torch.float32)
    adapted = PeftModel.from_pretrained(base, root / "job" / "output").eval()
    plain = methods.load_base_model(folder, torch.float32)
    merged = merge.merge_adapter(plain, root / "job" / "output", torch.float32).eval()
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        assert torch.allclose(adapted(ids).logits, merged(ids).logits, atol=1e-4)


def test_the_probe_is_the_answer_of_the_exported_folder(
    evaluated: tuple[StageResult, Progress], exported: tuple[StageResult, Path]
) -> None:
    probe = evaluated[0].probe
    assert probe is not None
    assert probe.max_tokens <= 32
    model = methods.load_base_model(exported[1], torch.float32).eval()
    tokenizer = load_tokenizer(exported[1])
    messages = [turn.to_wire() for turn in probe.messages]
    prompt = torch.tensor(greedy.tokenize_messages(tokenizer, messages))[None]
    generated: list[int] = []
    for _ in range(probe.max_tokens):
        with torch.no_grad():
            generated.append(int(model(prompt).logits[0, -1].argmax()))
        prompt = torch.cat([prompt, torch.tensor([[generated[-1]]])], dim=1)
    assert tokenizer.decode(generated, skip_special_tokens=True) == probe.answer


def test_the_artifact_is_described_by_its_manifest(
    exported: tuple[StageResult, Path], job: tuple[Path, Path, str]
) -> None:
    result, folder = exported
    assert result.artifact is not None
    manifest = (folder / "manifest.json").read_bytes()
    assert result.artifact.digest == f"sha256:{hashlib.sha256(manifest).hexdigest()}"
    files = json.loads(manifest)["files"]
    present = {p.name: p for p in folder.iterdir()}
    assert set(files) | {"manifest.json"} == set(present)
    for name, facts in files.items():
        assert facts["sha256"] == hashlib.sha256(present[name].read_bytes()).hexdigest()
    needed = {"config.json", "generation_config.json", "tokenizer.json", "README.md"}
    assert needed | {"model.safetensors", "chat_template.jinja"} <= set(files)
    assert result.artifact.bytes == sum(p.stat().st_size for p in present.values())
    assert folder.stat().st_mode & 0o777 == 0o755
    assert {p.stat().st_mode & 0o777 for p in present.values()} == {0o644}
    ends = json.loads((folder / "generation_config.json").read_text())["eos_token_id"]
    assert ends == [2]
    card = (folder / "README.md").read_text()
    assert job[2] in card
    assert "loss (nats per token)" in card


def test_the_signature_of_a_presigned_address_is_not_in_the_artifact(
    job: tuple[Path, Path, str], exported: tuple[StageResult, Path]
) -> None:
    run = run_for(job, "export").model_copy(update={"evaluation": None})
    uri = "https://files.example/tiny.tar.gz?X-Signature=hidden"
    data = {**run.raw_spec["dataset"], "train": [{"uri": uri.replace("tar.gz", "jsonl")}]}
    spec = {**run.raw_spec, "model": {"uri": uri}, "dataset": data}
    presigned = run.model_copy(update={"raw_spec": spec})
    written = render_model_card(presigned) + json.dumps(make_manifest(presigned, {}))
    assert "https://files.example/tiny.tar.gz" in written
    assert "https://files.example/tiny.jsonl" in written
    assert "hidden" not in written


def test_the_end_of_turn_token_of_the_template_ends_generation(tmp_path: Path) -> None:
    # As in base models, whose lists have the end of a document only.
    folder = tiny_model(tmp_path / "tiny")
    (folder / "generation_config.json").write_text('{"eos_token_id": 0}')
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config["eos_token"] = "<|endoftext|>"
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    model = methods.load_base_model(folder, torch.float32)
    assert greedy.find_end_tokens(model, load_tokenizer(folder)) == [0, 2]


def test_export_starts_again_after_an_attempt_that_left_an_incomplete_folder(
    job: tuple[Path, Path, str], exported: tuple[StageResult, Path]
) -> None:
    result, folder = exported
    (folder / "manifest.json").unlink()
    (folder / "model.safetensors").write_bytes(b"half")
    (folder / ".partial").mkdir()
    (folder / ".partial" / "stray").write_text("x")
    run = run_for(job, "export", attempt=2).model_copy(update={"evaluation": None})
    again = export.export(run, Report("export", 2))
    assert again.artifact is not None
    assert not list(folder.glob(".*"))
    before = result.artifact
    assert before is not None
    assert before.uri == again.artifact.uri
    files = json.loads((folder / "manifest.json").read_text())["files"]
    assert files["model.safetensors"]["size"] == (folder / "model.safetensors").stat().st_size


def test_a_complete_artifact_is_kept_as_it_is(
    job: tuple[Path, Path, str], exported: tuple[StageResult, Path]
) -> None:
    _, folder = exported
    before = {path.name: path.stat().st_ino for path in folder.iterdir()}
    manifest = (folder / "manifest.json").read_bytes()
    kept = export.export(run_for(job, "export", attempt=3), Report("export", 3))
    assert kept.artifact is not None
    assert kept.artifact.digest == f"sha256:{hashlib.sha256(manifest).hexdigest()}"
    assert {path.name: path.stat().st_ino for path in folder.iterdir()} == before


def test_changed_weights_are_not_evaluated(job: tuple[Path, Path, str], tmp_path: Path) -> None:
    import shutil

    from finetune_trainer.runtime.errors import RetryableError

    root, model, method = job
    shutil.copytree(root / "job", tmp_path / "job")
    weights = next((tmp_path / "job" / "output").glob("*.safetensors"))
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    run = make_run(tmp_path, model, stage="evaluate", method=method, world_size=1)
    with pytest.raises(RetryableError, match=weights.name):
        merge.load_tuned_model(run, torch.float32)


@pytest.mark.parametrize(
    ("left", "right", "equal"),
    [
        ("The  Answer.", "the answer", True),
        ("ﬁne", "fine", True),
        ("co-operate", "co operate", True),
        ("one", "two", False),
    ],
)
def test_exact_match_ignores_case_punctuation_and_spaces(
    left: str, right: str, equal: bool
) -> None:
    assert (normalise_text(left) == normalise_text(right)) is equal


def test_a_probe_is_cut_at_the_first_small_margin(tiny_model_folder: Path) -> None:
    tokenizer = load_tokenizer(tiny_model_folder)
    tokens = tokenizer("Badera is a small protocol", add_special_tokens=False)["input_ids"]
    sure = [2.0] * len(tokens)
    unsure = [2.0, 2.0, 0.1] + [2.0] * (len(tokens) - 3)
    messages = [{"role": "user", "content": "q"}]

    def sample(margins: list[float]) -> probing.AnsweredPrompt:
        answer = greedy.Answer(tokens, margins, decode_tokens(tokenizer, tokens))
        return probing.AnsweredPrompt(messages, "", answer, answer)

    assert probing.stable_length(tokenizer, sample(unsure).tuned, 0.5) == 2
    assert probing.stable_length(tokenizer, sample(unsure).tuned, 0.05) == len(tokens)
    probe = probing.choose_probe(tokenizer, [sample(unsure), sample(sure)], 0.5)
    assert probe is not None
    assert (probe.max_tokens, probe.answer) == (len(tokens), "Badera is a small protocol")
    assert probing.choose_probe(tokenizer, [], 0.5) is None


def test_a_template_that_prints_the_date_gives_no_probe(tiny_model_folder: Path) -> None:
    tokenizer = load_tokenizer(tiny_model_folder)
    tokens = tokenizer("Badera is a small protocol", add_special_tokens=False)["input_ids"]
    answer = greedy.Answer(tokens, [2.0] * len(tokens), decode_tokens(tokenizer, tokens))
    samples = [probing.AnsweredPrompt([{"role": "user", "content": "q"}], "", answer, answer)]
    assert probing.choose_probe(tokenizer, samples, 0.5) is not None
    tokenizer.chat_template = "{{ strftime_now('%d %b %Y') }}" + tokenizer.chat_template
    assert probing.choose_probe(tokenizer, samples, 0.5) is None


def test_a_longer_probe_is_preferred_to_a_surer_one_of_a_single_token(
    tiny_model_folder: Path,
) -> None:
    tokenizer = load_tokenizer(tiny_model_folder)
    tokens = tokenizer("Badera is a small protocol", add_special_tokens=False)["input_ids"]
    text = decode_tokens(tokenizer, tokens)
    short = greedy.Answer(tokens, [9.0] + [0.0] * (len(tokens) - 1), text)
    long = greedy.Answer(tokens, [1.0] * len(tokens), text)
    samples = [
        probing.AnsweredPrompt([{"role": "user", "content": "q"}], "", each, each)
        for each in (short, long)
    ]
    probe = probing.choose_probe(tokenizer, samples, 0.5)
    assert probe is not None
    assert probe.max_tokens == len(tokens)


def test_the_summary_survives_serialisation(evaluated: tuple[StageResult, Progress]) -> None:
    summary = evaluated[0].evaluation
    assert summary is not None
    assert EvaluationSummary.model_validate(summary.to_wire()) == summary
