"""Mixture-of-experts models: which weights get adapters, and the router's loss and metrics."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from finetune_api.finetunejob import FineTuneJobSpec
from finetune_trainer import methods
from finetune_trainer.methods.moe import Routing, expert_count, expert_weight_names, find_routers
from finetune_trainer.methods.target_modules import linear_layers
from finetune_trainer.runtime.errors import UserError

from tests.trainer import families
from tests.trainer.tiny import tiny_model

FAMILIES = {"mixtral": families.tiny_mixtral, "qwen": families.tiny_qwen_moe}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("moe")
    found = {name: make(root / name) for name, make in FAMILIES.items()}
    return {**found, "dense": tiny_model(root / "dense")}


def loaded(folder: Path) -> Any:
    return methods.load_base_model(folder, torch.float32)


def adapted(folder: Path, **moe: Any) -> Any:
    lora = {"rank": 4, "alpha": 8, "dropout": 0}
    spec = FineTuneJobSpec.model_validate(
        {
            "model": {"uri": "pvc://models/tiny"},
            "dataset": {"train": [{"uri": "pvc://data/rows.jsonl"}]},
            "method": {"type": "LoRA", "lora": lora, "moe": moe},
        }
    )
    return methods.apply_method(loaded(folder), spec, 10)


@pytest.mark.parametrize("family", FAMILIES)
def test_all_linear_selects_neither_router_nor_experts(
    folders: dict[str, Path], family: str
) -> None:
    model = adapted(folders[family])
    trained = [name for name, weight in model.named_parameters() if weight.requires_grad]
    assert len(trained) == 2 * 2 * 4
    assert all("self_attn" in name for name in trained)


@pytest.mark.parametrize("family", FAMILIES)
def test_experts_get_adapters_on_request_and_the_router_never(
    folders: dict[str, Path], family: str
) -> None:
    model = adapted(folders[family], experts=True)
    trained = [name for name, weight in model.named_parameters() if weight.requires_grad]
    in_experts = [name for name in trained if "experts" in name]
    assert len(in_experts) == 2 * 2 * 2
    assert not any("gate.weight" in name or ".gate." in name for name in trained)
    names = [name.rsplit(".", 1)[-1] for name in expert_weight_names(loaded(folders[family]))]
    assert names == ["gate_up_proj", "down_proj"] * 2


def test_a_dense_model_has_no_experts_to_adapt(folders: dict[str, Path]) -> None:
    model = loaded(folders["dense"])
    assert expert_count(model.config) == 0
    assert find_routers(model) == []
    assert len(linear_layers(model)) == 2 * 7
    with pytest.raises(UserError) as caught:
        expert_weight_names(model)
    assert caught.value.failure.reason == "ExpertsNotAdaptable"


@pytest.mark.parametrize("family", FAMILIES)
def test_the_expert_count_of_the_config_file_is_that_of_the_model(
    folders: dict[str, Path], family: str
) -> None:
    written = json.loads((folders[family] / "config.json").read_text())
    assert expert_count(written) == expert_count(loaded(folders[family]).config) == 4


@pytest.mark.parametrize("family", FAMILIES)
def test_the_auxiliary_loss_is_that_of_the_architecture_and_reaches_the_router(
    folders: dict[str, Path], family: str
) -> None:
    model = loaded(folders[family]).train()
    ids = torch.arange(24).view(2, 12)
    routing = Routing(model, 0.5)
    with routing.record_logits():
        output = model(input_ids=ids, output_router_logits=True)
    loss = routing.auxiliary_loss(torch.ones_like(ids, dtype=torch.bool))
    assert loss is not None
    assert float(loss.detach()) == pytest.approx(0.5 * float(output.aux_loss.detach()), rel=1e-6)
    loss.backward()
    assert all(float(router.weight.grad.abs().sum()) > 0 for router, _ in find_routers(model))


def test_padding_changes_neither_loss_nor_load(folders: dict[str, Path]) -> None:
    model = loaded(folders["mixtral"]).train()
    ids = torch.arange(5, 15).view(1, 10)
    padded = torch.cat([ids, torch.zeros(1, 6, dtype=torch.int64)], dim=1)
    found = []
    for tokens in (ids, padded):
        routing = Routing(model, 0.01)
        with routing.record_logits():
            model(input_ids=tokens)
        loss = routing.auxiliary_loss(torch.arange(tokens.shape[1]).view(1, -1) < 10)
        assert loss is not None
        found.append((float(loss.detach()), routing.take_metrics()))
        routing.remove_hooks()
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-6)
    assert torch.allclose(found[0][1], found[1][1])


def test_the_load_is_reported_per_expert_and_sums_to_one(folders: dict[str, Path]) -> None:
    model = loaded(folders["mixtral"]).train()
    routing = Routing(model, 0.0)
    assert routing.metric_names == (
        "router_entropy",
        "expert_load_max",
        *(f"expert_load/{index}" for index in range(4)),
    )
    ids = torch.arange(40).view(2, 20)
    with routing.record_logits():
        model(input_ids=ids)
    assert routing.auxiliary_loss(ids >= 0) is None
    means = routing.take_metrics() / ids.numel()
    assert float(means[2:].sum()) == pytest.approx(1.0)
    assert 0.25 <= float(means[1]) <= 0.5
    assert 0 < float(means[0]) <= float(torch.log(torch.tensor(4.0)))
    assert float(routing.take_metrics().abs().sum()) == 0


def test_recomputed_activations_do_not_count_twice(folders: dict[str, Path]) -> None:
    model = loaded(folders["mixtral"]).train()
    model.config.use_cache = False
    model.gradient_checkpointing_enable({"use_reentrant": False})
    ids = torch.arange(20).view(1, 20)
    routing = Routing(model, 1.0)
    with routing.record_logits():
        logits = model(input_ids=ids).logits
    loss = routing.auxiliary_loss(ids >= 0)
    assert loss is not None
    (logits.sum() + loss).backward()
    assert float(routing.take_metrics()[2:].sum()) == pytest.approx(20)
    assert routing.auxiliary_loss(ids >= 0) is None
