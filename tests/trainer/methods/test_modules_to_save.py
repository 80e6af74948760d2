"""Embeddings, heads and norms that are trained entirely next to LoRA adapters."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from finetune_api.finetunejob import FineTuneJobSpec, Method
from finetune_trainer import methods
from finetune_trainer.evaluation.merge import merge_adapter
from finetune_trainer.methods.method_check import check_method
from finetune_trainer.methods.weight_check import build_empty_model
from finetune_trainer.objectives.collate import collate
from finetune_trainer.objectives.sft import OutputHeadLoss
from finetune_trainer.objectives.token_logprobs import disable_adapters
from finetune_trainer.runtime.errors import UserError
from finetune_trainer.training.flops import count_model_flops

from tests.trainer import families
from tests.trainer.architectures import write_model
from tests.trainer.objectives.test_fused_cross_entropy import SEQUENCES
from tests.trainer.tiny import VOCABULARY, tiny_model

LLAMA = ["embed_tokens", "lm_head", "input_layernorm", "norm"]
IDS = torch.arange(5, 25).view(1, -1)
WIDTH = 64


def job(names: list[str], **training: Any) -> FineTuneJobSpec:
    settings = {"precision": "bf16", "gradientCheckpointing": False, **training}
    lora = {"rank": 4, "dropout": 0, "modulesToSave": names}
    return FineTuneJobSpec.model_validate(
        {
            "model": {"uri": "pvc://models/tiny"},
            "dataset": {"train": [{"uri": "pvc://data/rows.jsonl"}]},
            "method": {"type": "LoRA", "lora": lora},
            "training": settings,
        }
    )


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model.eval()(input_ids=IDS).logits
    return found


def randomise_vectors(model: Any) -> None:
    """Norms of a new model multiply by one, and its biases are zero."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() == 1:
                weight.add_(torch.randn(weight.shape, generator=generator) * 0.3)


@pytest.mark.parametrize(
    ("make", "names", "is_tied"),
    [
        (tiny_model, LLAMA, True),
        (families.tiny_gpt2, ["wte", "lm_head", "ln_f"], True),
        (families.tiny_qwen, ["lm_head"], False),
    ],
)
def test_copies_are_trained_in_fp32_and_merged(
    tmp_path: Path, make: Callable[[Path], Path], names: list[str], is_tied: bool
) -> None:
    folder, spec = make(tmp_path / "model"), job(names)
    base = methods.load_base_model(folder, torch.bfloat16)
    randomise_vectors(base)
    base.save_pretrained(folder)
    untrained = logits(base)
    frozen = {name: weight.detach().clone() for name, weight in base.named_parameters()}
    model = methods.apply_method(base, spec, 1)
    embedding, head = (
        layer.modules_to_save["default"].weight if hasattr(layer, "modules_to_save") else None
        for layer in (model.get_input_embeddings(), model.get_output_embeddings())
    )
    assert (embedding is head) == is_tied
    trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    assert {weight.dtype for weight in trained.values()} == {torch.float32}
    assert sum(head is weight for weight in trained.values()) == 1
    assert torch.equal(logits(model), untrained)

    compute_loss = OutputHeadLoss(model.train())
    optimizer = torch.optim.AdamW(trained.values(), lr=1e-2)
    losses = []
    for _ in range(4):
        loss = compute_loss(model, collate(SEQUENCES)).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert compute_loss.is_fused
    compute_loss.detach_from_model()
    assert losses[-1] < losses[0] - 0.1
    adapted = logits(model)
    with disable_adapters(model):
        assert torch.equal(logits(model), untrained)

    weights = {name: weight.detach() for name, weight in trained.items()}
    methods.save_trained_weights(model, weights, spec.method, tmp_path / "output")
    plain = methods.load_base_model(folder, torch.bfloat16)
    merged = merge_adapter(plain, tmp_path / "output", torch.bfloat16)
    seen = dict(merged.named_parameters())
    assert seen.keys() == frozen.keys()
    assert torch.equal(merged.get_output_embeddings().weight, head.detach().bfloat16())
    first, last = merged.get_input_embeddings().weight, merged.get_output_embeddings().weight
    assert (first is last) == is_tied
    for name, weight in trained.items():
        if "modules_to_save" in name:
            end = name.replace("modules_to_save.default.", "").removeprefix("base_model.model.")
            assert torch.equal(seen[end], weight.detach().bfloat16())
            assert not torch.equal(seen[end], frozen[end])
    # Adapters are rounded once they are merged, so the logits differ by roundings of bf16.
    assert (logits(merged) - adapted).norm() < 0.02 * (adapted - untrained).norm()


@pytest.mark.parametrize("loaded", [torch.bfloat16, torch.float16])
def test_copies_are_rounded_once_when_merged(tmp_path: Path, loaded: torch.dtype) -> None:
    """Evaluation on a GPU may load a base in another precision than it was saved in."""
    folder, spec = tiny_model(tmp_path / "model"), job(["embed_tokens", "lm_head", "norm"])
    model = methods.apply_method(methods.load_base_model(folder, torch.bfloat16), spec, 1)
    weights = {n: w.detach().normal_() for n, w in model.named_parameters() if w.requires_grad}
    methods.save_trained_weights(model, weights, spec.method, tmp_path / "output")
    base = methods.load_base_model(folder, loaded)
    merged = merge_adapter(base, tmp_path / "output", torch.float16)
    seen = dict(merged.named_parameters())
    for name, weight in weights.items():
        if "modules_to_save" in name:
            end = name.replace("modules_to_save.default.", "").removeprefix("base_model.model.")
            assert torch.equal(seen[end], weight.half().to(loaded))


@pytest.mark.parametrize(
    ("kind", "names", "precision"),
    [
        ("gemma3_text", ["embed_tokens", "lm_head", "norm", "q_norm"], "bf16"),
        ("phi", ["lm_head", "final_layernorm"], "bf16"),
        ("llama", LLAMA, "bf16"),
        ("llama", LLAMA, "fp16"),
        ("gpt_oss", LLAMA, "fp16"),
    ],
)
def test_an_untrained_copy_computes_what_its_original_does(
    tmp_path: Path, kind: str, names: list[str], precision: str
) -> None:
    """Gemma scales its embedding, Phi's head has a bias, Llama's norms round before they multiply
    by the weight, and the norms of gpt_oss stay in fp32 next to fp16."""
    folder = write_model(tmp_path, kind, hidden_size=48)
    base = methods.load_base_model(folder, methods.DTYPES[precision])
    randomise_vectors(base)
    untrained = logits(base)
    model = methods.apply_method(base, job(names, precision=precision), 1)
    assert torch.equal(logits(model), untrained)


@pytest.mark.parametrize(
    ("make", "method", "names", "message", "remedy"),
    [
        (tiny_model, {}, ["score"], "names score,", "embed_tokens"),
        (tiny_model, {}, ["q_proj"], "without an adapter", "lm_head, norm, "),
        (tiny_model, {"type": "QLoRA"}, ["o_proj"], "are quantised", "lm_head, norm, "),
        (tiny_model, {}, ["lm_head"], "share one weight", "both lm_head and embed_tokens"),
        (tiny_model, {}, ["embed_tokens"], "share one weight", "both embed_tokens and lm_head"),
        (families.tiny_mixtral, {}, ["gate"], "names gate,", "lm_head, norm, "),
    ],
)
def test_modules_that_cannot_be_trained_alone_are_refused(
    tmp_path: Path,
    make: Callable[[Path], Path],
    method: dict[str, Any],
    names: list[str],
    message: str,
    remedy: str,
) -> None:
    model = build_empty_model(make(tmp_path / "model"), "model")
    lora = {"targetModules": ["q_proj"], "modulesToSave": names}
    with pytest.raises(UserError) as caught:
        check_method(model, Method.model_validate({"lora": lora, **method}), "model")
    failure = caught.value.failure
    assert failure.reason == ("TiedModule" if "share" in message else "UnknownTargetModule")
    assert message in failure.message
    assert remedy in failure.remedy


@pytest.mark.parametrize(
    ("targets", "names", "remedy"),
    [
        (["q_proj"], ["down_proj"], "Name both down_proj and up_proj,"),
        (["up_proj"], ["down_proj"], "Name no module that matches model.layers.0.mlp.down_proj."),
    ],
)
def test_a_weight_that_a_module_with_an_adapter_shares_is_refused(
    tmp_path: Path, targets: list[str], names: list[str], remedy: str
) -> None:
    folder = tiny_model(tmp_path / "model")
    model = build_empty_model(folder, "model")
    mlp = model.model.layers[0].mlp
    mlp.up_proj.weight = mlp.down_proj.weight
    lora = {"targetModules": targets, "modulesToSave": names}
    with pytest.raises(UserError) as caught:
        check_method(model, Method.model_validate({"lora": lora}), "model")
    assert caught.value.failure.reason == "TiedModule"
    assert "model.layers.0.mlp.up_proj, but the two share" in caught.value.failure.message
    assert remedy in caught.value.failure.remedy


def test_a_tied_weight_is_copied_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = methods.load_base_model(tiny_model(tmp_path / "model"), torch.bfloat16)
    copied = []
    to = torch.Tensor.to

    def count(tensor: torch.Tensor, *args: Any, **options: Any) -> torch.Tensor:
        if options.get("copy"):
            copied.append(tensor.shape)
        return to(tensor, *args, **options)

    monkeypatch.setattr(torch.Tensor, "to", count)
    methods.apply_method(base, job(["embed_tokens", "lm_head"]), 1)
    assert copied == [(VOCABULARY, WIDTH)]


def test_a_layer_without_an_adapter_and_the_score_of_a_reward_model_can_be_named(
    tmp_path: Path,
) -> None:
    folder = tiny_model(tmp_path / "model")
    for names, is_reward_model in ([["down_proj"], False], [["embed_tokens", "score"], True]):
        model = build_empty_model(folder, "model", is_reward_model)
        lora = {"targetModules": ["q_proj"], "modulesToSave": names}
        check_method(model, Method.model_validate({"lora": lora}), "model")
        copied = {
            name.split(".modules_to_save")[0].rsplit(".", 1)[-1]
            for name, _ in model.named_parameters()
            if ".modules_to_save.default." in name
        }
        assert copied == {*names}


def test_a_copy_has_the_rows_of_new_tokens_too(tmp_path: Path) -> None:
    base = methods.load_base_model(families.tiny_qwen(tmp_path / "model"), torch.float32)
    methods.add_token_rows(base, [VOCABULARY])
    model = methods.apply_method(base, job(["lm_head"]), 1, [VOCABULARY])
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    assert head.modules_to_save["default"].weight.shape == (VOCABULARY + 1, WIDTH)
    assert embedding.token_adapter.trainable_tokens_delta["default"].shape == (1, WIDTH)


def test_a_trained_head_costs_a_gradient_of_its_weight(tmp_path: Path) -> None:
    folder = families.tiny_qwen(tmp_path / "model")
    for names, per_weight in ([["norm"], 4], [["lm_head", "embed_tokens"], 6]):
        base = methods.load_base_model(folder, torch.float32)
        flops = count_model_flops(methods.apply_method(base, job(names), 1))
        assert flops.per_head_position == per_weight * VOCABULARY * WIDTH
        if per_weight == 4:
            per_token = flops.per_token
    assert flops.per_token == per_token
