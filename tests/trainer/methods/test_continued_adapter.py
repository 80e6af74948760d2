"""Training that continues from a LoRA adapter starts with exactly its weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from finetune_api.run_config import RunConfig
from finetune_trainer import evaluate, methods
from finetune_trainer.distributed.rank_reporter import RankReporter
from finetune_trainer.evaluation import merge
from finetune_trainer.methods.modules_to_save import TIED_WARNING
from finetune_trainer.objectives import reference_logprobs
from finetune_trainer.runtime.telemetry import RankFile, Report
from finetune_trainer.training import worker
from peft import PeftModel

from tests.trainer.adapters import spec_of, write_adapter
from tests.trainer.jobs import NoStop, losses, make_run, to_json, write_data
from tests.trainer.tiny import tiny_model
from tests.trainer.whole_job import single_rank

LORA: dict[str, Any] = {"rank": 4, "alpha": 16, "dropout": 0, "targetModules": ["q_proj", "v_proj"]}
IDS = torch.arange(5, 25).view(1, -1)
METHODS: dict[str, dict[str, Any]] = {
    "LoRA": {"type": "LoRA", "lora": LORA},
    "rsLoRA": {"type": "LoRA", "lora": {**LORA, "rankStabilized": True}},
    "DoRA": {"type": "DoRA", "lora": LORA},
    "modules": {
        "type": "LoRA",
        "lora": {**LORA, "modulesToSave": ["embed_tokens", "lm_head", "norm"]},
    },
}


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model.eval()(input_ids=IDS).logits
    return found


@pytest.mark.filterwarnings(f"ignore:{TIED_WARNING}")
@pytest.mark.parametrize("name", METHODS)
def test_it_starts_as_the_model_that_peft_loads(tmp_path: Path, name: str) -> None:
    folder = tiny_model(tmp_path / "model")
    adapter = write_adapter(tmp_path / "adapter", folder, METHODS[name])
    base = methods.load_base_model(folder, torch.float32)
    untrained = logits(base)
    continued = methods.apply_method(base, spec_of(METHODS[name]), 1, adapter=adapter)
    loaded = PeftModel.from_pretrained(methods.load_base_model(folder, torch.float32), adapter)
    assert torch.allclose(logits(continued), logits(loaded), atol=1e-6)
    assert not torch.allclose(logits(continued), untrained, atol=1e-2)
    assert all(each.dtype == torch.float32 for each in continued.parameters() if each.requires_grad)


def test_qlora_is_compared_with_the_adapter_on_the_rounded_base(tmp_path: Path) -> None:
    model = tiny_model(tmp_path / "models" / "tiny")
    first = write_adapter(tmp_path / "job" / "adapter" / "first", model, METHODS["LoRA"])
    spec = spec_of({"type": "QLoRA", "lora": LORA})
    quantization = methods.quantization_config(spec.method, torch.float32, "DDP")
    base = methods.load_base_model(model, torch.float32, quantization=quantization)
    continued = methods.apply_method(base, spec, 1, adapter=first)
    run = job(tmp_path, model, "evaluate", method=spec.method.to_wire())
    initial = merge.load_initial_model(run, torch.float32)
    assert torch.allclose(logits(initial), logits(continued), atol=2e-4)
    unrounded = merge.load_initial_model(job(tmp_path, model, "evaluate"), torch.float32)
    assert not torch.allclose(logits(initial), logits(unrounded), atol=1e-2)


def job(root: Path, model: Path, stage: str = "train", **spec: Any) -> RunConfig:
    config = to_json(make_run(root, model, stage, world_size=1, steps=20, lora=LORA))
    config["spec"] |= spec
    config["spec"]["model"]["adapter"] = {"uri": "pvc://adapters/first"}
    config["model"]["adapter"] = {"revision": "sha256:first", "folder": "first"}
    return RunConfig.model_validate(config)


def test_checkpoints_and_reference_logps_are_those_of_one_revision(tmp_path: Path) -> None:
    run = job(tmp_path, tiny_model(tmp_path / "models" / "tiny"))
    config = to_json(run)
    config["model"]["adapter"]["revision"] = "sha256:second"
    other = RunConfig.model_validate(config)
    assert worker.checkpoint_fingerprint(run) != worker.checkpoint_fingerprint(other)
    assert reference_logprobs.reference_folder(run) != reference_logprobs.reference_folder(other)


def test_a_job_continues_and_is_compared_with_the_adapter(tmp_path: Path) -> None:
    """The base of the comparison is what training started from, and the result contains both."""
    model = tiny_model(tmp_path / "models" / "tiny")
    first = write_adapter(tmp_path / "job" / "adapter" / "first", model, METHODS["LoRA"], scale=0.2)
    write_data(tmp_path / "job" / "data", model)
    evaluation = {"maxSamples": 12, "generations": 3, "maxNewTokens": 4}
    reporter = RankReporter(RankFile(tmp_path, 0))
    with single_rank(tmp_path):
        finished, _ = worker.train(job(tmp_path, model), reporter, NoStop())
    assert finished
    run = job(tmp_path, model, "evaluate", evaluation=evaluation)
    adapted = PeftModel.from_pretrained(methods.load_base_model(model, torch.float32), first)
    initial = merge.load_initial_model(run, torch.float32)
    assert torch.allclose(logits(initial), logits(adapted), atol=1e-5)
    output = tmp_path / "job" / "output"
    tuned = merge.load_tuned_model(run, torch.float32, base=initial)
    trained = PeftModel.from_pretrained(methods.load_base_model(model, torch.float32), output)
    assert torch.allclose(logits(tuned), logits(trained), atol=1e-5)
    result = evaluate.evaluate(run, Report("evaluate", 1))
    assert result.evaluation is not None
    loss = result.evaluation.find("loss")
    assert loss is not None
    history = losses(tmp_path / "job")
    assert loss.tuned < loss.value
    # A job with a new adapter starts at the loss of the base model.
    assert loss.value == pytest.approx(history[0], abs=0.2)
