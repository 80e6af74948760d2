"""Export takes no more memory than the planner expects."""

from __future__ import annotations

import json
import multiprocessing
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from finetune_api.facts import ModelFacts
from finetune_api.run_config import RunConfig
from finetune_operator.jobs.stages.export import ALLOCATOR
from finetune_operator.planner.export import export_memory_bytes
from finetune_operator.planner.quantity import GIB, MIB
from finetune_trainer.checkpointing.checkpoint_folder import hash_files
from finetune_trainer.export import write_files
from finetune_trainer.methods.target_modules import linear_layers
from finetune_trainer.runtime.telemetry import Report

from tests.trainer.jobs import make_run
from tests.trainer.tiny import set_config, tiny_model

HIDDEN, LAYERS, INTERMEDIATE = 1024, 12, 4096
EXPERTS, EXPERT_SIZE = 24, 256


def random_model(folder: Path) -> Path:
    """A Llama in bf16 whose weights are large next to what a process takes anyway."""
    from transformers import AutoConfig

    tiny_model(folder)
    heads = {"num_attention_heads": 8, "num_key_value_heads": 8, "head_dim": 128}
    sizes = {"hidden_size": HIDDEN, "intermediate_size": INTERMEDIATE, "num_hidden_layers": LAYERS}
    set_config(folder, **sizes, **heads, dtype="bfloat16")
    return write_weights(folder, AutoConfig.from_pretrained(folder))


def random_mixture(folder: Path) -> Path:
    """A mixture of experts, whose weights are nearly all in its experts."""
    from transformers import Qwen3MoeConfig

    tiny_model(folder)
    heads = {"num_attention_heads": 8, "num_key_value_heads": 8, "head_dim": 128}
    sizes = {"hidden_size": HIDDEN, "num_hidden_layers": LAYERS, "vocab_size": 2048}
    experts = {"moe_intermediate_size": EXPERT_SIZE, "num_experts": EXPERTS}
    return write_weights(
        folder, Qwen3MoeConfig(**heads, **sizes, **experts, intermediate_size=EXPERT_SIZE)
    )


def write_weights(folder: Path, config: Any) -> Path:
    """Replace the weights in a folder by random ones in several files."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="100MB")
    return folder


def write_adapter(base: Path, output: Path) -> None:
    """An adapter on the linear layers of every block, without experts, as training leaves it."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    lora = LoraConfig(r=8, target_modules=linear_layers(model), task_type="CAUSAL_LM")
    get_peft_model(model, lora).save_pretrained(output)
    (output / "files.json").write_text(json.dumps({"files": hash_files(output)}))


def model_facts(base: Path, intermediate_size: int) -> ModelFacts:
    sizes = [path.stat().st_size for path in base.glob("*.safetensors")]
    return ModelFacts(
        architecture="LlamaForCausalLM",
        parameters=sum(sizes) // 2,
        layers=LAYERS,
        hidden_size=HIDDEN,
        intermediate_size=intermediate_size,
        attention_heads=8,
        key_value_heads=8,
        vocabulary=2048,
        context_length=512,
        weight_bytes=sum(sizes),
        folder=base.name,
    )


def anonymous_bytes() -> int:
    """Memory of this process that the kernel cannot reclaim."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith("RssAnon:"))
    return int(line.split()[1]) * 1024


class Peak:
    """The largest `anonymous_bytes` while the block runs."""

    def __enter__(self) -> Peak:
        self.bytes = 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._measure)
        self._thread.start()
        return self

    def _measure(self) -> None:
        while not self._done.wait(0.005):
            self.bytes = max(self.bytes, anonymous_bytes())

    def __exit__(self, *_: Any) -> None:
        self._done.set()
        self._thread.join()


def export_in_own_process(folder: Path, base: Path) -> tuple[RunConfig, int]:
    """The run of an export, and the most memory that its process had.

    A process of its own, because this one keeps memory of the model that it wrote, which the export
    would use again.
    """
    run = make_run(folder, base, stage="export")
    write_adapter(base, Path(run.paths.job) / "output")
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as processes:
        return run, processes.submit(measure_export, run, folder / "artifact").result()


def measure_export(run: RunConfig, artifact: Path) -> int:
    with Peak() as peak:
        write_files(run, Report("export", 1), artifact)
    return peak.bytes


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc of Linux")
@pytest.mark.parametrize(
    ("make_model", "intermediate_size"),
    [(random_model, INTERMEDIATE), (random_mixture, EXPERT_SIZE)],
)
def test_export_of_merged_weights_takes_what_the_planner_expects(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    make_model: Callable[[Path], Path],
    intermediate_size: int,
) -> None:
    for name, value in ALLOCATOR.items():
        monkeypatch.setenv(name, value)
    tiny = tmp_path / "tiny"
    _, process = export_in_own_process(tiny, tiny_model(tiny / "base"))
    base = make_model(tmp_path / "base")
    run, peak = export_in_own_process(tmp_path, base)
    facts, taken = model_facts(base, intermediate_size), peak - process
    print(
        f"\nprocess {process / MIB:.0f} MiB, weights {facts.weight_bytes / MIB:.0f} MiB, "
        f"export {taken / MIB:.0f} MiB"
    )
    assert process <= GIB
    assert taken <= export_memory_bytes(run.spec, facts) - GIB
