"""LoRA and full training under every strategy, on two real processes, in one launch of torchrun.

For each pair: six uninterrupted steps; the same run stopped after three steps by a request to one
rank; and a second attempt that resumes it. Dropout is on, so a resume with other generator states
would change the losses.
"""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from tests.trainer.jobs import Runs, losses, make_run, to_json, torchrun, write_data
from tests.trainer.tiny import tiny_model

METHODS = ("LoRA", "Full")
STRATEGIES = ("DDP", "ZeRO1", "ZeRO2", "ZeRO3", "FSDP")
PAIRS = list(itertools.product(METHODS, STRATEGIES))
ENGINES = {
    "DDP": ("DistributedDataParallel", "DistributedDataParallel"),
    "ZeRO1": ("DeepSpeedEngine", "DeepSpeedEngine"),
    "ZeRO2": ("DeepSpeedEngine", "DeepSpeedEngine"),
    "ZeRO3": ("DeepSpeedEngine", "DeepSpeedEngine"),
    "FSDP": ("FSDPPeftModelForCausalLM", "FSDPLlamaForCausalLM"),
}
STEPS, STOP = 6, 3
HIDDEN, RANK = 64, 8


def dropout_model(root: Path) -> Path:
    """The tiny model with dropout in its attention, so that full training has dropout too."""
    folder = tiny_model(root / "models" / "tiny")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "attention_dropout": 0.1}))
    return folder


def cases_of(root: Path, model: Path) -> list[dict[str, Any]]:
    cases = []

    def add(name: str, folder: str | None = None, **more: Any) -> None:
        where = root / (folder or name)
        if not where.exists():
            write_data(where / "job" / "data", model)
        stop = more.pop("stop_after", None)
        run = to_json(make_run(where, model, steps=STEPS, **more))
        cases.append({"name": name, "run": run, "stop_after": stop})

    for method, strategy in PAIRS:
        name = f"{method}-{strategy}"
        how: dict[str, Any] = {"method": method, "strategy": strategy}
        if method == "LoRA":
            how["lora"] = {"dropout": 0.2}
        add(name, **how)
        add(f"{name}-stopped", stop_after=STOP, **how)
        add(f"{name}-resumed", folder=f"{name}-stopped", attempt=2, **how)
    for method, strategy in [("LoRA", "ZeRO2"), ("LoRA", "ZeRO3"), ("LoRA", "FSDP")] + [
        ("Full", strategy) for strategy in ("DDP", "ZeRO2", "ZeRO3", "FSDP")
    ]:
        training = {"precision": "bf16", "gradientCheckpointing": True}
        add(f"{method}-{strategy}-bf16", method=method, strategy=strategy, training=training)
    return cases


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    root = tmp_path_factory.mktemp("strategies")
    cases = cases_of(root, dropout_model(root))
    (root / "cases.json").write_text(json.dumps(cases))
    print(torchrun(2, "tests.trainer.drive_training", str(root / "cases.json")))
    return Runs(root)


@pytest.mark.parametrize(("method", "strategy"), PAIRS)
def test_the_model_is_wrapped_and_sharded(runs: Runs, method: str, strategy: str) -> None:
    both = [runs.case_result(f"{method}-{strategy}", rank) for rank in (0, 1)]
    lora = method == "LoRA"
    assert both[0]["facts"]["engine"] == ENGINES[strategy][0 if lora else 1]
    assert both[0]["facts"]["worldSize"] == 2
    # The first trainable parameter is an adapter matrix, or the embedding.
    elements = HIDDEN * (RANK if lora else 2048)
    shards = 2 if strategy in ("ZeRO3", "FSDP") else 1
    assert [seen["local_elements"] for seen in both] == [elements // shards] * 2
    trained = 18496 if lora else 222016
    held = [seen["optimizer_elements"] for seen in both]
    assert held == ([trained] * 2 if strategy == "DDP" else [trained // 2] * 2)


@pytest.mark.parametrize(("method", "strategy"), PAIRS)
def test_under_fsdp_only_rank_zero_loads_the_weights(
    runs: Runs, method: str, strategy: str
) -> None:
    places = [runs.case_result(f"{method}-{strategy}", rank)["loaded_on"] for rank in (0, 1)]
    assert places == (["cpu", "meta"] if strategy == "FSDP" else ["cpu", "cpu"])


def test_fsdp_reduces_gradients_of_full_training_after_every_micro_batch(runs: Runs) -> None:
    # Adapters are small: their gradients are reduced once per step.
    assert runs.case_result("Full-FSDP")["reduced_between"] is True
    assert runs.case_result("LoRA-FSDP")["reduced_between"] is False


@pytest.mark.parametrize(("method", "strategy"), PAIRS)
def test_ranks_end_with_equal_weights(runs: Runs, method: str, strategy: str) -> None:
    first, second = (runs.case_result(f"{method}-{strategy}", rank) for rank in (0, 1))
    assert first["trained_digest"] == second["trained_digest"]


@pytest.mark.parametrize("method", METHODS)
def test_all_strategies_have_the_same_falling_loss(runs: Runs, method: str) -> None:
    reference = losses(runs.job(f"{method}-DDP"))
    assert len(reference) == STEPS
    assert reference[-1] < reference[0] - 0.3
    for strategy in STRATEGIES[1:]:
        other = losses(runs.job(f"{method}-{strategy}"))
        assert other == pytest.approx(reference, abs=1e-4), strategy


@pytest.mark.parametrize(("method", "strategy"), PAIRS)
def test_a_resumed_run_has_bitwise_the_same_losses(runs: Runs, method: str, strategy: str) -> None:
    name = f"{method}-{strategy}"
    straight = losses(runs.job(name))
    stopped = runs.case_result(f"{name}-stopped")
    assert stopped["finished"] is False
    assert stopped["facts"]["steps"] == STOP
    resumed = runs.case_result(f"{name}-resumed")
    assert resumed["finished"] is True
    assert resumed["facts"]["resumedFromStep"] == STOP
    job = runs.job(f"{name}-stopped")
    assert losses(job, 1) == straight[:STOP]
    assert losses(job, 2) == straight[STOP:]
    assert resumed["trained_digest"] == runs.case_result(name)["trained_digest"]


@pytest.mark.parametrize(("method", "strategy"), PAIRS)
def test_the_output_folder_holds_the_trained_weights(
    runs: Runs, method: str, strategy: str
) -> None:
    output = runs.job(f"{method}-{strategy}") / "output"
    lora = method == "LoRA"
    file = output / ("adapter_model.safetensors" if lora else "model.safetensors")
    listed = json.loads((output / "files.json").read_text())["files"]
    assert listed[file.name]["size"] == file.stat().st_size
    with safe_open(file, "np") as tensors:
        names = set(tensors.keys())
        shapes = {name: tuple(tensors.get_slice(name).get_shape()) for name in names}
    if lora:
        first = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
        assert shapes[first] == (RANK, HIDDEN)
        assert len(names) == 2 * 7 * 2
    else:
        assert shapes["model.embed_tokens.weight"] == (2048, HIDDEN)
        assert len(names) == 2 + 2 * 9
    for path in (output, *output.iterdir()):
        assert path.stat().st_mode & 0o777 == (0o755 if path.is_dir() else 0o644)


@pytest.mark.parametrize(
    "name",
    ["LoRA-ZeRO2", "LoRA-ZeRO3", "LoRA-FSDP", "Full-DDP", "Full-ZeRO2", "Full-ZeRO3", "Full-FSDP"],
)
def test_bf16_with_gradient_checkpointing_has_nearly_the_same_losses(runs: Runs, name: str) -> None:
    exact, rounded = losses(runs.job(name)), losses(runs.job(f"{name}-bf16"))
    assert rounded != exact
    # Dropout differs: LoRA runs here have the default, full ones that of the model.
    assert rounded == pytest.approx(exact, rel=0.02)
