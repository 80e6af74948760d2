"""A Reward job, and a GRPO job that uses its artifact as reward model, end to end.

Both run the real stages: prepare, the planner, train, evaluate and export.
"""

from __future__ import annotations

import json
import shutil
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from finetune_api.finetunejob import FineTuneJobSpec
from finetune_api.run_config import RunConfig
from finetune_api.stage_result import StageResult
from finetune_operator.planner.training_plan import plan_training
from transformers import AutoModelForSequenceClassification

from tests.trainer import pool
from tests.trainer.jobs import NoStop
from tests.trainer.matrix import CPU
from tests.trainer.preferences import reverse_words
from tests.trainer.prompts import talkative_model
from tests.trainer.tiny import tiny_model, tiny_rows, write_rows

pytestmark = pytest.mark.filterwarnings("default")
TRAINING = {
    "epochs": 100,
    "batchSize": 16,
    "schedule": "constant",
    "warmupRatio": 0.0,
    "learningRate": 1e-2,
    "maxSequenceLength": 96,
    "precision": "fp32",
}
REWARD_MODEL: dict[str, Any] = {
    "model": {"uri": "pvc://models/plain"},
    "dataset": {"train": [{"uri": "pvc://data/pairs.jsonl"}], "holdout": "25%"},
    "objective": "Reward",
    "method": {"type": "LoRA", "lora": {"rank": 8, "alpha": 16, "dropout": 0}},
    "training": {**TRAINING, "maxSteps": 12},
}
POLICY: dict[str, Any] = {
    "model": {"uri": "pvc://models/talkative"},
    "dataset": {"train": [{"uri": "pvc://data/prompts.jsonl"}], "holdout": "25%"},
    "objective": "GRPO",
    "grpo": {
        "rewards": [
            {"type": "length", "weight": 5},
            {"type": "regex", "pattern": "^\\S+", "weight": 10},
            {"type": "rougeL", "weight": 0.5},
        ],
        "rewardModel": {"uri": "pvc://reward-models/scorer"},
        "generations": 4,
        "maxNewTokens": 8,
        "temperature": 0.1,
    },
    "method": {"type": "LoRA", "lora": {"rank": 8, "alpha": 16, "dropout": 0}},
    # At the rate of the reward model some CPUs end with empty answers.
    "training": {**TRAINING, "maxSteps": 20, "learningRate": 4e-3},
    "evaluation": {
        "generations": 6,
        "maxNewTokens": 4,
        "gate": [{"metric": "reward", "minImprovement": 0.1, "statistic": "Estimate"}],
    },
}


def run_of(spec: dict[str, Any], root: Path, name: str, stage: str, **more: Any) -> RunConfig:
    paths = {part: str(root / name / part) for part in ("job", "artifact")}
    caches = {"modelCache": str(root / name / "model"), "rewardCache": str(root / name / "reward")}
    return RunConfig.model_validate(
        {
            "job": {"name": name, "namespace": "default", "uid": "0000"},
            "stage": stage,
            "attempt": 1,
            "spec": FineTuneJobSpec.model_validate(spec).to_wire(),
            "artifactUri": f"pvc://finetune-workspace/artifacts/{name}-0000",
            "paths": {**paths, **caches, "volumes": str(root / "volumes")},
            **more,
        }
    )


def whole_jobs(root: Path) -> None:
    """The reward model, then the policy that it scores; results go to <name>.json."""
    from finetune_trainer import evaluate, export
    from finetune_trainer.distributed.rank_reporter import RankReporter
    from finetune_trainer.prepare import prepare
    from finetune_trainer.runtime.telemetry import RankFile, Report
    from finetune_trainer.sources import Credentials
    from finetune_trainer.training import worker
    from torch import distributed as dist

    for name, spec in (("reward-model", REWARD_MODEL), ("policy", POLICY)):
        run = run_of(spec, root, name, "prepare")
        found = prepare(run, Report("prepare", 1), defaultdict(lambda: Credentials({})))
        assert found.model is not None
        assert found.data is not None
        known: dict[str, Any] = {"model": found.model, "data": found.data, "reward": found.reward}
        one = {**spec, "compute": {"nodes": 1, "gpusPerNode": 1}}
        parsed = FineTuneJobSpec.model_validate(one)
        known["plan"] = plan_training(
            parsed, found.model, found.data, "cpu", CPU, reward=found.reward
        )
        run = run_of(spec, root, name, "train", **known)
        if not dist.is_initialized():
            worker.join_process_group(run)
        (root / name / "ranks").mkdir(parents=True)
        finished, _ = worker.train(run, RankReporter(RankFile(root / name / "ranks", 0)), NoStop())
        assert finished
        evaluated = evaluate.evaluate(
            run_of(spec, root, name, "evaluate", **known), Report("evaluate", 1)
        )
        known["evaluation"] = evaluated.evaluation
        run = run_of(spec, root, name, "export", **known)
        export.export(run, Report("export", 1))
        (root / f"{name}.json").write_text(evaluated.model_dump_json(by_alias=True))
        (root / f"{name}.run.json").write_text(run.model_dump_json(by_alias=True))
        if name == "reward-model":
            shutil.copytree(root / name / "artifact", root / "volumes" / "reward-models" / "scorer")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("feedback")
    tiny_model(root / "volumes" / "models" / "plain")
    talkative_model(root / "volumes" / "models" / "talkative")
    rows = tiny_rows(32)
    pairs = [
        {
            "prompt": row["prompt"],
            "chosen": row["completion"],
            "rejected": reverse_words(row["completion"]),
        }
        for row in rows
    ]
    write_rows(root / "volumes" / "data" / "pairs.jsonl", pairs)
    prompts = [{"prompt": row["prompt"], "reference": row["completion"]} for row in rows]
    write_rows(root / "volumes" / "data" / "prompts.jsonl", prompts)
    print(pool.run(whole_jobs, root, world=1, folder=root / "log"))
    return root


def read_evaluation(jobs: Path, name: str) -> StageResult:
    return StageResult.model_validate_json((jobs / f"{name}.json").read_bytes())


def test_the_reward_of_held_out_prompts_rises(jobs: Path) -> None:
    result = read_evaluation(jobs, "policy")
    summary = result.evaluation
    assert summary is not None
    (reward,) = summary.comparisons
    assert reward.metric == "reward"
    assert reward.improvement > 1
    assert reward.low <= reward.improvement <= reward.high
    assert summary.generations == 6
    assert [outcome.metric for outcome in summary.gate] == ["reward"]
    assert result.outcome == "Succeeded"


def test_the_report_has_the_reward_of_every_answer(jobs: Path) -> None:
    report = json.loads((jobs / "policy" / "job" / "report" / "evaluation.json").read_text())
    summary = read_evaluation(jobs, "policy").evaluation
    assert summary is not None
    reward = summary.find("reward")
    assert reward is not None
    for side, mean in (("base", reward.value), ("tuned", reward.tuned)):
        rewards = [sample[side]["reward"] for sample in report["samples"]]
        assert np.mean(rewards) == pytest.approx(mean, rel=1e-5)
        # Answers may be as long as in training, regardless of evaluation.maxNewTokens.
        assert max(sample["base"]["tokens"] for sample in report["samples"]) == 8


def test_an_answer_is_recorded_for_the_parity_check_of_serving(jobs: Path) -> None:
    probe = read_evaluation(jobs, "policy").probe
    assert probe is not None
    assert probe.answer.strip()


def test_training_reports_every_reward(jobs: Path) -> None:
    text = (jobs / "policy" / "job" / "report" / "train-1.jsonl").read_text()
    history = [json.loads(line) for line in text.splitlines()]
    for line in history:
        parts = {name: line[f"rewards/{name}/mean"] for name in NAMES}
        assert line["reward"] == pytest.approx(sum(NAMES[name] * parts[name] for name in NAMES))
    assert history[-1]["reward"] > history[0]["reward"] + 1
    # 24 prompts, 4 of them a step.
    assert [line["epoch"] for line in history[:6]] == pytest.approx([n / 6 for n in range(1, 7)])


NAMES = {"length": 5.0, "regex": 10.0, "rougeL": 0.5, "rewardModel": 1.0}


def test_the_reward_model_scores_conversations_as_in_training(jobs: Path) -> None:
    from finetune_trainer.data.token_store import TokenStore
    from finetune_trainer.rewards.reward_functions import Completion
    from finetune_trainer.rewards.reward_model import RewardModel

    data = jobs / "reward-model" / "job" / "data"
    folder = jobs / "volumes" / "reward-models" / "scorer"
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    reward_model = RewardModel(folder, torch.device("cpu"), 512)
    store = TokenStore.open(data / "eval")
    lines = [json.loads(line) for line in (data / "eval.jsonl").read_text().splitlines()]
    completions = [
        Completion(line["messages"], line[side], True)
        for line in lines
        for side in ("chosen", "rejected")
    ]
    found = reward_model.score(completions)
    for index, score in enumerate(found):
        ids = torch.from_numpy(store.sequence(index).input_ids.astype(np.int64))[None]
        with torch.no_grad():
            assert score == pytest.approx(model(input_ids=ids).logits.item(), abs=1e-5)
    summary = read_evaluation(jobs, "reward-model").evaluation
    assert summary is not None
    accuracy = summary.find("preferenceAccuracy")
    assert accuracy is not None
    assert np.mean(found[::2] > found[1::2]) == pytest.approx(accuracy.tuned, abs=0.01)
