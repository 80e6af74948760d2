"""Number formats that an architecture insists on, on every rank and not only where it is loaded."""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch

from tests.trainer import families, pool


def look(folder: Path) -> None:
    """Wrap the model for FSDP and write down what this rank holds and says."""
    from finetune_api.finetunejob import Method, Training
    from finetune_trainer import methods, strategies
    from finetune_trainer.methods.adapters import add_adapters
    from torch import distributed as dist

    dist.init_process_group("gloo")
    spread = strategies.Spread(
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
    model = strategies.load(spread, folder, dtype, "sdpa")
    engine = strategies.wrap(add_adapters(model, spread.method, 1), spread)
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
