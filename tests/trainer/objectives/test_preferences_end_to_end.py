"""From a file of rows to an exported folder that loads again, for every objective but GRPO.

Each job runs the real stages: prepare, the planner, train, evaluate and export.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from finetune_api.finetunejob import FineTuneJobSpec
from finetune_api.run_config import RunConfig
from finetune_api.stage_result import StageResult

from tests.trainer import pool
from tests.trainer.jobs import NoStop
from tests.trainer.matrix import Case, plan_of, run_of, write_data
from tests.trainer.tiny import tiny_model

METHODS = ("LoRA", "Full")
EVERY = [
    ("LoRA", "SFT"),
    ("Full", "Completion"),
    ("LoRA", "DPO"),
    ("Full", "DPO"),
    ("Full", "KTO"),
    ("LoRA", "ORPO"),
    ("LoRA", "SimPO"),
    ("LoRA", "Reward"),
    ("Full", "Reward"),
]
PREFERRING = [pair for pair in EVERY if pair[1] not in ("SFT", "Completion")]
STEPS = 24
FIVE_PERCENT = {"minRelativeImprovement": "5%"}
GATES = {
    "DPO": [("preferenceAccuracy", {"minImprovement": 0}), ("loss", FIVE_PERCENT)],
    "Reward": [("preferenceAccuracy", {"minImprovement": 0.1}), ("loss", FIVE_PERCENT)],
}


def changed(run: RunConfig, case: Case) -> RunConfig:
    """The run of a case with the settings of this test."""
    spec = json.loads(json.dumps(run.raw_spec))
    spec["training"] |= {"maxSteps": STEPS, "learningRate": 5e-3}
    spec["dataset"]["holdout"] = "40%"
    spec["evaluation"] = {
        "generations": 4,
        "maxNewTokens": 16,
        "gate": [
            {"metric": metric, "statistic": "Estimate", **least}
            for metric, least in GATES.get(case.objective, [])
        ],
    }
    if case.objective == "SFT":
        spec["sft"] = {"lossOn": "All"}
    return run.model_copy(update={"raw_spec": spec})


class Planned(Case):
    """A case with the settings of this test in its spec."""

    def spec(self) -> FineTuneJobSpec:
        plain = super().spec()
        training = plain.training.model_copy(update={"max_steps": STEPS, "learning_rate": 5e-3})
        return plain.model_copy(update={"training": training})


def whole_jobs(cases: list[tuple[str, str]], root: Path) -> None:
    """Every stage of every case, in one process; results go to <name>.json."""
    from finetune_trainer import evaluate, export
    from finetune_trainer.distributed.rank_reporter import RankReporter
    from finetune_trainer.prepare import prepare
    from finetune_trainer.runtime.telemetry import RankFile, Report
    from finetune_trainer.sources import Credentials
    from finetune_trainer.training import worker
    from torch import distributed as dist

    joined = False
    for method, objective in cases:
        case = Planned(method, objective, "one process")
        run = changed(run_of(case, root, "prepare"), case)
        found = prepare(run, Report("prepare", 1), defaultdict(lambda: Credentials({})))
        assert found.model is not None
        assert found.data is not None
        known: dict[str, Any] = {"model": found.model, "data": found.data}
        known["plan"] = plan_of(case, found.model, found.data)
        run = changed(run_of(case, root, "train", **known), case)
        if not joined:
            worker.join_process_group(run)
            joined = True
        (root / case.name / "ranks").mkdir(parents=True)
        reporter = RankReporter(RankFile(root / case.name / "ranks", 0))
        finished, facts = worker.train(run, reporter, NoStop())
        assert finished
        assert facts.steps == STEPS
        run = changed(run_of(case, root, "evaluate", **known), case)
        scored = evaluate.evaluate(run, Report("evaluate", 1))
        known["evaluation"] = scored.evaluation
        run = changed(run_of(case, root, "export", **known), case)
        export.export(run, Report("export", 1))
        (root / f"{case.name}.json").write_text(scored.model_dump_json(by_alias=True))
        (root / f"{case.name}.run.json").write_text(run.model_dump_json(by_alias=True))
    dist.destroy_process_group()


class Jobs:
    """The results and folders of the jobs."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def scored(self, method: str, objective: str) -> StageResult:
        path = self.root / f"{Case(method, objective, 'one process').name}.json"
        return StageResult.model_validate_json(path.read_bytes())

    def folder(self, method: str, objective: str, part: str = "artifact") -> Path:
        return self.root / Case(method, objective, "one process").name / part


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> Jobs:
    volumes = tmp_path_factory.mktemp("whole")
    root = volumes / "jobs"
    root.mkdir()
    folder = tiny_model(volumes / "volumes" / "models" / "dense")
    saved_in_half(folder)
    write_data(volumes / "volumes" / "data")
    print(pool.run(whole_jobs, EVERY, root, world=1, folder=volumes / "log", deadline=500))
    return Jobs(root)


def saved_in_half(folder: Path) -> None:
    """Save the model in bf16, as most are: evaluation and export both round the weights."""
    import torch
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    half = {name: weight.to(torch.bfloat16) for name, weight in weights.items()}
    save_file(half, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "dtype": "bfloat16"}))


@pytest.mark.parametrize(("method", "objective"), EVERY)
def test_the_tuned_model_has_the_lower_held_out_loss(
    jobs: Jobs, method: str, objective: str
) -> None:
    summary = jobs.scored(method, objective).evaluation
    assert summary is not None
    loss = summary.find("loss")
    assert loss is not None
    assert loss.tuned < loss.value
    assert summary.tokens
    assert (summary.find("exactMatch") is not None) == (objective == "SFT")
    has_preferences = objective not in ("SFT", "Completion")
    assert (summary.find("preferenceAccuracy") is not None) == has_preferences


@pytest.mark.parametrize(
    ("method", "objective", "loss"),
    [("LoRA", "DPO", math.log(2)), ("Full", "DPO", math.log(2)), ("Full", "KTO", 0.5)],
)
def test_the_base_has_the_loss_of_its_own_reference(
    jobs: Jobs, method: str, objective: str, loss: float
) -> None:
    summary = jobs.scored(method, objective).evaluation
    assert summary is not None
    found = summary.find("loss")
    assert found is not None
    assert found.value == pytest.approx(loss, rel=1e-5)


@pytest.mark.parametrize(("method", "objective"), PREFERRING)
def test_the_chosen_completion_is_preferred(jobs: Jobs, method: str, objective: str) -> None:
    summary = jobs.scored(method, objective).evaluation
    assert summary is not None
    accuracy = summary.find("preferenceAccuracy")
    assert accuracy is not None
    assert accuracy.tuned >= accuracy.value
    assert accuracy.tuned > 0.8
    wanted = [metric for metric, _ in GATES.get(objective, [])]
    assert [rule.metric for rule in summary.gate] == wanted


@pytest.mark.parametrize(("method", "objective"), EVERY)
def test_the_exported_model_reproduces_the_parity_probe(
    jobs: Jobs, method: str, objective: str
) -> None:
    import torch
    from finetune_trainer import methods
    from finetune_trainer.data.tokenizer import load_tokenizer
    from finetune_trainer.generation import greedy

    probe = jobs.scored(method, objective).probe
    if objective == "Reward":
        assert probe is None
        return
    assert probe is not None
    folder = jobs.folder(method, objective)
    model, tokenizer = methods.load_base_model(folder, torch.float32).eval(), load_tokenizer(folder)
    asked = greedy.tokenize_messages(tokenizer, [turn.to_wire() for turn in probe.messages])
    (answer,) = greedy.generate_answers(model, tokenizer, [asked], probe.max_tokens, lambda _: None)
    assert answer.text == probe.answer


@pytest.mark.parametrize("method", METHODS)
def test_the_exported_reward_model_scores_as_the_evaluated_one(jobs: Jobs, method: str) -> None:
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    folder = jobs.folder(method, "Reward")
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == ["LlamaForSequenceClassification"]
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    lines = (jobs.folder(method, "Reward", "job") / "data" / "eval.jsonl").read_text().splitlines()
    texts = []
    for line in map(json.loads, lines):
        for answer in (line["chosen"], line["rejected"]):
            turns = [*line["messages"], {"role": "assistant", "content": answer}]
            texts.append(tokenizer.apply_chat_template(turns, tokenize=False))
    inputs = tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)
    with torch.no_grad():
        scores = model(**inputs).logits[:, 0].double().numpy().reshape(-1, 2)
    loss = np.log1p(np.exp(scores[:, 1] - scores[:, 0]))
    summary = jobs.scored(method, "Reward").evaluation
    assert summary is not None
    found, accuracy = summary.find("loss"), summary.find("preferenceAccuracy")
    assert found is not None
    assert found.tuned == pytest.approx(float(loss.mean()), rel=1e-4)
    assert accuracy is not None
    assert accuracy.tuned == pytest.approx((scores[:, 0] > scores[:, 1]).mean(), rel=1e-5)
    assert "pipeline_tag: text-classification" in (folder / "README.md").read_text()


def test_the_loss_on_all_tokens_counts_the_prompts(jobs: Jobs) -> None:
    data = jobs.folder("LoRA", "SFT", "job") / "data" / "eval"
    labels, tokens = np.load(data / "labels.npy"), np.load(data / "tokens.npy")
    assert (labels == tokens).all()
    summary = jobs.scored("LoRA", "SFT").evaluation
    assert summary is not None
    # The first token of a sample is not predicted.
    assert summary.tokens == len(tokens) - (len(np.load(data / "offsets.npy")) - 1)


def test_the_report_has_every_pair(jobs: Jobs) -> None:
    path = jobs.folder("LoRA", "DPO", "job") / "report" / "evaluation.json"
    body = json.loads(path.read_text())
    assert body["objective"] == "DPO"
    assert {example["weight"] for example in body["examples"]} == {1}
    assert all(e["baseLoss"] == pytest.approx(math.log(2)) for e in body["examples"])
    assert all(sample["base"] is None for sample in body["samples"])
    card = (jobs.folder("LoRA", "DPO") / "README.md").read_text()
    assert "| DPO loss |" in card
    assert "| better answer preferred |" in card
