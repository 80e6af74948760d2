"""Number formats that an architecture insists on, on every rank and not only where it is loaded."""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch

from tests.trainer import families, pool
from tests.trainer.jobs import make_run, write_data
from tests.trainer.tiny import tiny_model


def look(folder: Path) -> None:
    """Wrap the model for FSDP and write down what this rank holds and says."""
    from finetune_api.finetunejob import Method, Training
    from finetune_trainer import methods, strategies
    from finetune_trainer.methods.adapters import add_adapters
    from torch import distributed as dist

    dist.init_process_group("gloo")
    spread = strategies.StrategyConfig(
        strategy="FSDP",
        method=Method(),
        training=Training(),
        device=torch.device("cpu"),
        learning_rate=1e-3,
        micro_batch_size=1,
        offload=False,
        autocast=False,
    )
    dtype = methods.weight_dtype(spread.method, spread.training, "FSDP")
    model = strategies.load_model(spread, folder, dtype, "sdpa")
    engine = strategies.wrap_model(add_adapters(model, spread.method, 1), spread)
    with torch.no_grad():
        said = engine.model(input_ids=torch.arange(3, 12)[None]).logits.float().sum().item()
    held = {name: str(each.dtype) for name, each in model.named_buffers()}
    rank = os.environ["RANK"]
    (folder / f"rank-{rank}.json").write_text(json.dumps({"held": held, "said": said}))


def test_what_an_architecture_keeps_in_fp32_is_so_on_every_rank(tmp_path: Path) -> None:
    folder = families.tiny_deepseek(tmp_path / "model")
    pool.run(look, folder, world=2, folder=tmp_path / "logs", deadline=120)
    first, second = (json.loads((folder / f"rank-{rank}.json").read_text()) for rank in (0, 1))
    assert first == second
    kept = [name for name in first["held"] if name.endswith("e_score_correction_bias")]
    assert kept
    assert {first["held"][name] for name in kept} == {"torch.float32"}


def look_at_packing(root: Path, model: Path) -> None:
    """Begin a run that trains fp32 weights in bf16, and write down what its layers compute in."""
    from finetune_trainer.distributed.startup_timer import StartupTimer
    from finetune_trainer.objectives import ObjectiveContext, make_objective
    from finetune_trainer.training import worker
    from torch import distributed as dist

    dist.init_process_group("gloo")
    run = make_run(root, model, method="Full", training={"precision": "bf16"})
    spec = run.spec
    wrapped, engine, spread = worker.build_model(run, spec, StartupTimer())
    setting = ObjectiveContext(run, spec, run.require_plan(), spread.device, flatten=False)
    objective = make_objective(wrapped, setting)
    formats = set()
    layer = wrapped.get_decoder().layers[0].self_attn.q_proj
    layer.register_forward_hook(lambda module, inputs, output: formats.add(str(output.dtype)))
    objective.inspect_untrained_model(engine)
    (root / "formats.json").write_text(json.dumps(sorted(formats)))


def test_packed_rows_are_looked_at_in_the_format_of_training(tmp_path: Path) -> None:
    """Flash attention, where it is there, knows no fp32."""
    model = tiny_model(tmp_path / "models" / "tiny")
    write_data(tmp_path / "job" / "data", model)
    pool.run(look_at_packing, tmp_path, model, world=1, folder=tmp_path / "logs", deadline=120)
    assert json.loads((tmp_path / "formats.json").read_text()) == ["torch.bfloat16"]
