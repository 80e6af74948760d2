"""Every method under every strategy on two real ranks: equal losses, and results that merge.

test_strategies covers LoRA and Full. One launch trains all cases: six uninterrupted steps, and for
some methods the same run stopped after three steps, with a second attempt that resumes it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from finetune_api.run_config import RunConfig
from finetune_trainer import export
from finetune_trainer.evaluation import merge
from finetune_trainer.objectives.collate import collate
from finetune_trainer.objectives.sft import OutputHeadLoss
from finetune_trainer.runtime.telemetry import Report
from safetensors.torch import load_file
from tokenizers import Tokenizer

from tests.trainer import families, pool
from tests.trainer.adapters import write_adapter
from tests.trainer.drive_training import drive
from tests.trainer.jobs import Runs, losses, make_run, pack, to_json, tokenize_row
from tests.trainer.tiny import tiny_model, tiny_rows

STEPS, STOP = 6, 3
LORA = {"rank": 8, "alpha": 16, "dropout": 0.1}
EXACT = {**LORA, "dropout": 0}
METHODS: dict[str, dict[str, Any]] = {
    "QLoRA": {"type": "QLoRA", "lora": LORA},
    "DoRA": {"type": "DoRA", "lora": {**LORA, "rankStabilized": True}},
    "IA3": {"type": "IA3"},
    "AdaLoRA": {
        "type": "AdaLoRA",
        "adalora": {"initialRank": 6, "targetRank": 3, "warmupRatio": 0.1, "finalRatio": 0.3},
    },
    "Prefix": {"type": "Prefix", "prefix": {"virtualTokens": 6}},
    "Prefix-projection": {"type": "Prefix", "prefix": {"virtualTokens": 6, "projection": True}},
    "tokens-LoRA": {"type": "LoRA", "lora": LORA},
    "tokens-Full": {"type": "Full"},
    "untied-tokens-LoRA": {"type": "LoRA", "lora": LORA},
    "untied-tokens-QLoRA": {"type": "QLoRA", "lora": LORA},
    "tokens-DoRA": {"type": "DoRA", "lora": LORA},
    "rope-LoRA": {"type": "LoRA", "lora": LORA},
    "moe-LoRA": {"type": "LoRA", "lora": LORA, "moe": {}},
    "moe-experts": {"type": "LoRA", "lora": EXACT, "moe": {"experts": True}},
    "moe-QLoRA": {"type": "QLoRA", "lora": LORA},
    "moe-Full": {"type": "Full", "moe": {"routerAuxLossCoefficient": 0.02}},
    "modules-LoRA": {
        "type": "LoRA",
        "lora": {**LORA, "modulesToSave": ["embed_tokens", "lm_head", "norm", "input_layernorm"]},
    },
    "adapter-LoRA": {
        "type": "LoRA",
        "lora": {**EXACT, "modulesToSave": ["embed_tokens", "lm_head", "norm"]},
    },
    "adapter-DoRA": {"type": "DoRA", "lora": EXACT},
    "untied-modules-QLoRA": {
        "type": "QLoRA",
        "lora": {**LORA, "modulesToSave": ["lm_head", "input_layernorm"]},
    },
}
RATES = {"IA3": 0.3, "Prefix": 0.1, "AdaLoRA": 2e-2, "moe-Full": 5e-3, "tokens-Full": 5e-3}
SHARDED = ("ZeRO2", "ZeRO3", "FSDP")
PAIRS = [
    (method, strategy)
    for method in METHODS
    for strategy in ("DDP", *SHARDED)
    if (method != "AdaLoRA" or strategy == "DDP")
    and not ("DoRA" in method and strategy == "ZeRO3")
    and not (strategy == "ZeRO3" and "tokens" in method and method != "tokens-Full")
]
RESUMED = [
    ("AdaLoRA", "DDP"),
    ("QLoRA", "FSDP"),
    ("QLoRA", "ZeRO3"),
    ("Prefix", "ZeRO2"),
    ("tokens-LoRA", "FSDP"),
    ("moe-experts", "FSDP"),
    ("modules-LoRA", "FSDP"),
]
"""test_matrix resumes the others."""
BF16_PAIRS = [
    (method, strategy)
    for method, strategy in PAIRS
    if (
        method in ("QLoRA", "DoRA", "moe-experts", "moe-Full", "untied-tokens-LoRA")
        or "modules" in method
    )
    and strategy in ("DDP", "ZeRO3", "FSDP")
]
ROPE = {"type": "yarn", "factor": 4}
TOKENS = ["<|first|>", "<|second|>"]
ADAPTER = {"revision": "sha256:first", "folder": "first"}
SWAPPED = (400, 500)
"""Ordinary tokens that the new ones replace in the data."""


def model_of(method: str) -> str:
    for name in ("moe", "untied"):
        if method.startswith(name):
            return name
    return "tiny"


def changes_of(method: str) -> dict[str, Any]:
    """The changes of the job to the model."""
    if method.startswith("adapter"):
        return {"adapter": {"uri": "pvc://adapters/first"}}
    if "tokens" in method:
        return {"tokenizer": {"specialTokens": TOKENS}}
    return {"rope": ROPE} if "rope" in method else {}


def write_data(folder: Path, model: Path, new: bool) -> None:
    from finetune_trainer.data.token_store import TokenizedSample, TokenStore

    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    ids = dict(zip(SWAPPED, (2048, 2049), strict=True)) if new else {}

    def replace_swapped(tokens: list[int]) -> list[int]:
        return [ids.get(token, token) for token in tokens]

    rows = [tokenize_row(tokenizer, row) for row in tiny_rows(60)]
    samples = [
        TokenizedSample(replace_swapped(row.tokens), replace_swapped(row.labels)) for row in rows
    ]
    TokenStore.write(folder / "train", samples[:48], [[i] for i in range(48)])
    TokenStore.write(folder / "eval", samples[48:], pack(samples[48:], 96))


def cases_of(root: Path, models: Path) -> list[dict[str, Any]]:
    cases = []

    def add(method: str, name: str, where: str, **more: Any) -> None:
        stop = more.pop("stop_after", None)
        model = models / model_of(method)
        if not (root / where).exists():
            write_data(root / where / "job" / "data", model, "tokens" in method)
        run = to_json(make_run(root / where, model, steps=STEPS, **more))
        run["spec"]["method"] = METHODS[method]
        run["plan"]["learningRate"] = RATES.get(method, 1e-2)
        run["spec"]["model"].update(changes_of(method))
        if method.startswith("adapter"):
            run["model"]["adapter"] = ADAPTER
            folder = root / where / "job" / "adapter" / ADAPTER["folder"]
            write_adapter(folder, model, METHODS[method], scale=0.05)
        cases.append({"name": name, "run": run, "stop_after": stop})

    for method, strategy in PAIRS:
        name = f"{method}-{strategy}"
        add(method, name, name, strategy=strategy)
        if (method, strategy) not in RESUMED:
            continue
        add(method, f"{name}-stopped", f"{name}-stopped", strategy=strategy, stop_after=STOP)
        add(method, f"{name}-resumed", f"{name}-stopped", strategy=strategy, attempt=2)
    for method, strategy in BF16_PAIRS:
        bf16 = {"precision": "bf16", "gradientCheckpointing": True}
        name = f"{method}-{strategy}-bf16"
        add(method, name, name, strategy=strategy, training=bf16)
    return cases


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    root = tmp_path_factory.mktemp("methods")
    tiny_model(root / "models" / "tiny")
    families.tiny_qwen(root / "models" / "untied")
    families.tiny_mixtral(root / "models" / "moe")
    (root / "cases.json").write_text(json.dumps(cases_of(root, root / "models")))
    pool.run(drive, root / "cases.json", world=2, folder=root / "logs", deadline=900)
    return Runs(root)


@pytest.mark.parametrize(("method", "strategy"), PAIRS)
def test_ranks_end_with_equal_weights(runs: Runs, method: str, strategy: str) -> None:
    first, second = (runs.case_result(f"{method}-{strategy}", rank) for rank in (0, 1))
    assert first["trained_digest"] == second["trained_digest"]
    shards = 2 if strategy in ("ZeRO3", "FSDP") and first["whole_elements"] > 1 else 1
    held = first["local_elements"] + second["local_elements"]
    assert held in (
        first["whole_elements"] * 2 // shards,
        first["whole_elements"] * 2 // shards + 1,
    )
    wrapped = {"DDP": "DistributedDataParallel", "FSDP": "FSDP"}.get(strategy, "DeepSpeedEngine")
    assert first["facts"]["engine"].startswith(wrapped)


@pytest.mark.parametrize("method", METHODS)
def test_all_strategies_have_the_same_falling_loss(runs: Runs, method: str) -> None:
    reference = losses(runs.job(f"{method}-DDP"))
    assert reference[-1] < reference[0] - 0.1
    for strategy in SHARDED:
        if (method, strategy) in PAIRS:
            other = losses(runs.job(f"{method}-{strategy}"))
            assert other == pytest.approx(reference, abs=2e-4), strategy


@pytest.mark.parametrize("method", ["adapter-LoRA", "adapter-DoRA"])
@pytest.mark.parametrize("strategy", ["DDP", "FSDP"])
def test_training_starts_with_the_adapter(runs: Runs, method: str, strategy: str) -> None:
    first, fresh = (losses(runs.job(f"{m}-{strategy}"))[0] for m in (method, "modules-LoRA"))
    assert abs(first - fresh) > 1e-3


@pytest.mark.parametrize(("method", "strategy"), RESUMED)
def test_a_resumed_run_has_bitwise_the_same_losses(runs: Runs, method: str, strategy: str) -> None:
    name = f"{method}-{strategy}"
    straight, job = losses(runs.job(name)), runs.job(f"{name}-stopped")
    assert losses(job, 1) == straight[:STOP]
    assert losses(job, 2) == straight[STOP:]
    assert (
        runs.case_result(f"{name}-resumed")["trained_digest"]
        == runs.case_result(name)["trained_digest"]
    )


@pytest.mark.parametrize(("method", "strategy"), PAIRS)
def test_the_output_is_the_model_that_was_trained(runs: Runs, method: str, strategy: str) -> None:
    """Six steps lower the held-out loss, by the same amount under every strategy."""
    root = runs.root / f"{method}-{strategy}"
    assert held_out_loss(root, runs, method) == pytest.approx(
        held_out_loss(runs.root / f"{method}-DDP", runs, method), abs=2e-3
    )
    assert held_out_loss(root, runs, method) < held_out_loss(root, runs, method, base=True) - 0.1


@pytest.mark.parametrize(
    "name", ["Prefix-FSDP", "QLoRA-FSDP", "tokens-LoRA-FSDP", "rope-LoRA-ZeRO3", "moe-experts-FSDP"]
)
def test_the_exported_model_has_the_evaluated_loss_and_loads_without_our_code(
    runs: Runs, name: str
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    method, root = name.rsplit("-", 1)[0], runs.root / name
    evaluated = held_out_loss(root, runs, method)
    run = job_of(root, runs, method)
    artifact = Path(run.paths.artifact)
    export.export(run, Report("export", 1))
    assert AutoTokenizer.from_pretrained(artifact).chat_template
    if method == "Prefix":
        config = json.loads((artifact / "adapter_config.json").read_text())
        assert config["base_model_name_or_path"] == "pvc://models/tiny"
        base = AutoModelForCausalLM.from_pretrained(runs.root / "models" / "tiny")
        model = PeftModel.from_pretrained(base, artifact).eval()
    else:
        model = AutoModelForCausalLM.from_pretrained(artifact, dtype=torch.float32).eval()
    assert loss_on_held_out(model, root) == pytest.approx(evaluated, abs=1e-6)
    ids = torch.arange(5, 12).view(1, -1)
    answer = model.generate(input_ids=ids, max_new_tokens=4, do_sample=False)
    assert answer.shape[1] > ids.shape[1]


def job_of(root: Path, runs: Runs, method: str) -> RunConfig:
    run = make_run(root, runs.root / "models" / model_of(method))
    model = {**run.raw_spec["model"], **changes_of(method)}
    spec = {**run.raw_spec, "method": METHODS[method], "model": model}
    facts = run.require_model().to_wire()
    if method.startswith("adapter"):
        facts["adapter"] = ADAPTER
    return RunConfig.model_validate({**run.to_wire(), "spec": spec, "model": facts})


def loss_on_held_out(model: Any, root: Path) -> float:
    from finetune_trainer.data.token_store import TokenStore

    store = TokenStore.open(root / "job" / "data" / "eval")
    compute_loss = OutputHeadLoss(model)
    with torch.no_grad():
        each = [
            compute_loss(model, collate([store.sequence(i)])) for i in range(store.sequence_count)
        ]
    compute_loss.detach_from_model()
    return float(torch.cat(each).mean())


def held_out_loss(root: Path, runs: Runs, method: str, base: bool = False) -> float:
    kept = root / ("base-loss" if base else "tuned-loss")
    if not kept.exists():
        load = merge.load_initial_model if base else merge.load_tuned_model
        model = load(job_of(root, runs, method), torch.float32).eval()
        kept.write_text(str(loss_on_held_out(model, root)))
    return float(kept.read_text())


@pytest.mark.parametrize(("method", "strategy"), BF16_PAIRS)
def test_bf16_with_gradient_checkpointing_has_nearly_the_same_losses(
    runs: Runs, method: str, strategy: str
) -> None:
    exact = losses(runs.job(f"{method}-{strategy}"))
    rounded = losses(runs.job(f"{method}-{strategy}-bf16"))
    assert rounded != exact
    assert rounded == pytest.approx(exact, rel=0.03)


@pytest.mark.parametrize("strategy", ["DDP", *SHARDED])
def test_the_load_of_every_expert_is_reported(runs: Runs, strategy: str) -> None:
    metrics = runs.case_result(f"moe-Full-{strategy}")["reported"]["measures"]
    loads = [metrics[f"expert_load/{index}"] for index in range(families.EXPERTS)]
    assert sum(loads) == pytest.approx(1.0)
    assert metrics["expert_load_max"] >= max(loads) - 1e-9
    reference = runs.case_result("moe-Full-DDP")["reported"]["measures"]
    assert metrics["router_entropy"] == pytest.approx(reference["router_entropy"], abs=1e-4)


def test_full_training_keeps_new_tokens_in_the_saved_config(runs: Runs) -> None:
    config = json.loads((runs.job("tokens-Full-FSDP") / "output" / "config.json").read_text())
    assert config["vocab_size"] == 2050
    assert config["tie_word_embeddings"] is True


def test_the_result_of_adalora_has_the_target_rank_on_average(runs: Runs) -> None:
    folder = runs.job("AdaLoRA-DDP") / "output"
    ranks = json.loads((folder / "adapter_config.json").read_text())["rank_pattern"]
    kept = [sum(each) for each in ranks.values()]
    assert sum(kept) == 3 * len(kept)
    assert len(set(kept)) > 1
    weights = load_file(folder / "adapter_model.safetensors")
    shapes = {w.shape[0] for name, w in weights.items() if "lora_E" in name}
    assert shapes == set(kept)
