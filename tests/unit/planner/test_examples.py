"""Every example has a plan on the pool that it names, as the chart describes the pool.

Sizes of the models are those of their config.json.
"""

from pathlib import Path
from typing import Any

import pytest
import yaml
from finetune_api.acceleratorprofile import AcceleratorProfileSpec
from finetune_api.combinations import refusal_messages
from finetune_api.facts import DataFacts, ModelFacts
from finetune_api.finetunejob import FineTuneJobSpec
from finetune_api.train_plan import TrainPlan
from finetune_operator.planner.training_plan import plan_training

from tests.unit.planner.facts import DATA, LLAMA_8B, LLAMA_70B, SMOL, model

ROOT = Path(__file__).resolve().parents[3]
POOLS = yaml.safe_load((ROOT / "charts/finetune-operator/values.yaml").read_text())["profiles"]
DEFAULT = "h100-80gb"
"""The pool that the README's installation makes the default."""
QWEN_06B = model(596049920, 28, 1024, 3072, (16, 8), 151936)
MODELS = {
    "hf://meta-llama/Llama-3.2-3B": model(3212749824, 28, 3072, 8192, (24, 8), 128256),
    "hf://meta-llama/Llama-3.3-70B-Instruct": LLAMA_70B,
    "hf://meta-llama/Meta-Llama-3-8B": LLAMA_8B,
    "hf://mistralai/Mixtral-8x7B-Instruct-v0.1": model(
        46702792704, 32, 4096, 14336, (32, 8), 32000
    ),
    "hf://Qwen/Qwen3-0.6B": QWEN_06B,
    "hf://Qwen/Qwen3-1.7B": model(1720574976, 28, 2048, 6144, (16, 8), 151936),
    "hf://Qwen/Qwen3-4B": model(4022468096, 36, 2560, 9728, (32, 8), 151936),
    "hf://Qwen/Qwen3-8B": model(8190735360, 36, 4096, 12288, (32, 8), 151936),
    "pvc://demo-assets/models/SmolLM2-135M-Instruct": SMOL,
    "pvc://finetune-workspace/artifacts/support-bot-1b4e28ba": LLAMA_8B,
}
JOBS = [
    pytest.param(document["spec"], id=document["metadata"]["name"])
    for path in sorted((ROOT / "examples").glob("*.yaml"))
    for document in yaml.safe_load_all(path.read_text())
]


@pytest.mark.parametrize("spec", JOBS)
def test_an_example_fits_its_pool(spec: dict[str, Any]) -> None:
    job = FineTuneJobSpec.model_validate(spec)
    assert not refusal_messages(job.to_wire())
    name = job.compute.profile or DEFAULT
    pool = AcceleratorProfileSpec.model_validate(POOLS["pools"][name])
    reward = QWEN_06B if job.grpo and job.grpo.reward_model else None
    plan = plan_training(job, MODELS[job.model.uri], data_for(job), name, pool, reward)
    assert isinstance(plan, TrainPlan), plan
    assert plan.batch_size == job.training.batch_size


@pytest.mark.parametrize("spec", JOBS)
def test_an_example_extends_the_context_only_if_its_sequences_are_longer(
    spec: dict[str, Any],
) -> None:
    job = FineTuneJobSpec.model_validate(spec)
    facts: ModelFacts = MODELS[job.model.uri]
    factor = job.model.rope.factor if job.model.rope else 1
    longest = job.training.max_sequence_length
    assert longest <= facts.context_length * factor
    assert (longest > facts.context_length) == (factor > 1)


def data_for(job: FineTuneJobSpec) -> DataFacts:
    """Data whose sequences are as long as the job allows."""
    packed = job.objective in ("SFT", "Completion")
    longest = job.training.max_sequence_length
    return DATA.model_copy(update={"packed": packed, "longest_example": longest})
