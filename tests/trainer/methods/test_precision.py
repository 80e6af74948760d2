"""Dtypes that an architecture requires hold on every rank, also where it loads nothing."""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch

from tests.trainer import families, pool
from tests.trainer.jobs import make_run, write_data
from tests.trainer.tiny import tiny_model


def inspect_rank(folder: Path) -> None:
    """Wrap the model for FSDP and write this rank's dtypes and logits to a file."""
    from finetune_api.finetunejob import Method, Training
    from finetune_trainer import methods, strategies
    from finetune_trainer.methods.adapters import add_adapters
    from torch import distributed as dist

    dist.init_process_group("gloo")
    config = strategies.StrategyConfig(
        strategy="FSDP",
        method=Method(),
        training=Training(precision="bf16"),
        device=torch.device("cpu"),
        learning_rate=1e-3,
        micro_batch_size=1,
        offload=False,
        autocast=False,
    )
    dtype = methods.weight_dtype(config.method, config.training, "FSDP")
    model = strategies.load_model(config, folder, dtype, "sdpa")
    strategy = strategies.wrap_model(add_adapters(model, config.method, 1), config)
    with torch.no_grad():
        logits = strategy.model(input_ids=torch.arange(3, 12)[None]).logits.float().sum().item()
    dtypes = {name: str(each.dtype) for name, each in model.named_buffers()}
    rank = os.environ["RANK"]
    (folder / f"rank-{rank}.json").write_text(json.dumps({"dtypes": dtypes, "logits": logits}))


def test_buffers_that_an_architecture_keeps_in_fp32_are_fp32_on_every_rank(tmp_path: Path) -> None:
    folder = families.tiny_deepseek(tmp_path / "model")
    pool.run(inspect_rank, folder, world=2, folder=tmp_path / "logs", deadline=120)
    first, second = (json.loads((folder / f"rank-{rank}.json").read_text()) for rank in (0, 1))
    assert first == second
    kept = [name for name in first["dtypes"] if name.endswith("e_score_correction_bias")]
    assert kept
    assert {first["dtypes"][name] for name in kept} == {"torch.float32"}


def inspect_packing_check(root: Path, model: Path) -> None:
    """Check packing in a run that trains fp32 weights in bf16; write the dtypes of its layers."""
    from finetune_trainer.distributed.startup_timer import StartupTimer
    from finetune_trainer.objectives import ObjectiveContext, make_objective
    from finetune_trainer.training import worker
    from torch import distributed as dist

    dist.init_process_group("gloo")
    run = make_run(root, model, method="Full", training={"precision": "bf16"})
    wrapped, strategy, config = worker.build_model(run, StartupTimer())
    context = ObjectiveContext(run, run.require_plan(), config.device, flatten=False)
    objective = make_objective(wrapped, context)
    dtypes = set()
    layer = wrapped.get_decoder().layers[0].self_attn.q_proj
    layer.register_forward_hook(lambda module, inputs, output: dtypes.add(str(output.dtype)))
    objective.inspect_untrained_model(strategy)
    (root / "dtypes.json").write_text(json.dumps(sorted(dtypes)))


def test_packing_is_checked_in_the_dtype_of_training(tmp_path: Path) -> None:
    """Flash attention, where it is installed, does not support fp32."""
    model = tiny_model(tmp_path / "models" / "tiny")
    write_data(tmp_path / "job" / "data", model)
    pool.run(
        inspect_packing_check, tmp_path, model, world=1, folder=tmp_path / "logs", deadline=120
    )
    assert json.loads((tmp_path / "dtypes.json").read_text()) == ["torch.bfloat16"]
