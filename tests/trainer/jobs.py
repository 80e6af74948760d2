"""Job folders for the trainer's tests: a token store, held-out prompts and a run file."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from finetune_api.run_config import RunConfig
from finetune_trainer.data.token_store import IGNORED, TokenizedSample, TokenStore
from tokenizers import Tokenizer

from tests.trainer.tiny import tiny_rows

ROOT = Path(__file__).resolve().parents[2]
DIGEST = "sha256:" + "0" * 64


def tokenize_row(tokenizer: Tokenizer, row: dict[str, str]) -> TokenizedSample:
    """A row in the chat template of the tiny model; the completion has labels."""
    prompt = f"<|im_start|>user\n{row['prompt']}<|im_end|>\n<|im_start|>assistant\n"
    prompt_ids = tokenizer.encode(prompt, add_special_tokens=False).ids
    completion_ids = tokenizer.encode(
        f"{row['completion']}<|im_end|>", add_special_tokens=False
    ).ids
    return TokenizedSample(
        prompt_ids + completion_ids, [IGNORED] * len(prompt_ids) + completion_ids
    )


def pack(samples: list[TokenizedSample], max_length: int) -> list[list[int]]:
    """Indices of samples in order, as many in a sequence as fit."""
    sequences: list[list[int]] = []
    free_tokens = 0
    for index, sample in enumerate(samples):
        if len(sample.tokens) > free_tokens:
            sequences.append([])
            free_tokens = max_length
        sequences[-1].append(index)
        free_tokens -= len(sample.tokens)
    return sequences


def write_data(
    folder: Path, model: Path, train: int = 60, held_out: int = 12, max_length: int = 96
) -> None:
    """Write data/ of a job: training sequences, packed up to `max_length` tokens, held-out
    sequences and their prompts."""
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    rows = tiny_rows(train + held_out)
    trained = [tokenize_row(tokenizer, row) for row in rows[:train]]
    evaluated = [tokenize_row(tokenizer, row) for row in rows[train:]]
    TokenStore.write(folder / "train", trained, pack(trained, max_length))
    TokenStore.write(folder / "eval", evaluated, [[i] for i in range(held_out)])
    prompts = [
        {
            "messages": [{"role": "user", "content": row["prompt"]}],
            "reference": row["completion"],
        }
        for row in rows[train:]
    ]
    (folder / "eval.jsonl").write_text("".join(json.dumps(p) + "\n" for p in prompts))


def make_run(
    root: Path,
    model: Path,
    stage: str = "train",
    attempt: int = 1,
    method: str = "LoRA",
    strategy: str = "DDP",
    world_size: int = 2,
    steps: int = 6,
    training: dict[str, Any] | None = None,
    lora: dict[str, Any] | None = None,
    evaluation: dict[str, Any] | None = None,
    batch_size: int = 6,
    micro_batch_size: int = 2,
) -> RunConfig:
    """The run file of one attempt; the job's folder is root/job and must contain its data."""
    settings = {"precision": "fp32", "gradientCheckpointing": False, **(training or {})}
    how: dict[str, Any] = {"type": method}
    if method == "LoRA":
        how["lora"] = {"rank": 8, "alpha": 16, **(lora or {})}
    rate = 1e-2 if method == "LoRA" else 5e-3
    memory = dict.fromkeys(
        ("weights", "gradients", "optimizer", "activations", "total", "available"), 0
    )
    plan = {
        "profile": "cpu",
        "nodes": 1,
        "gpusPerNode": world_size,
        "worldSize": world_size,
        "device": "cpu",
        "strategy": strategy,
        "microBatchSize": micro_batch_size,
        "gradientAccumulation": -(-batch_size // (world_size * micro_batch_size)),
        "batchSize": batch_size,
        "totalSteps": steps,
        "learningRate": rate,
        "memory": memory,
    }
    facts = {
        "architecture": "LlamaForCausalLM",
        "parameters": 1,
        "layers": 2,
        "hiddenSize": 64,
        "intermediateSize": 172,
        "attentionHeads": 4,
        "keyValueHeads": 2,
        "vocabulary": 2048,
        "contextLength": 512,
        "weightBytes": 1,
        "folder": model.name,
        "revision": "r1",
    }
    data = {
        "format": "instruction",
        "trainExamples": 60,
        "evalExamples": 12,
        "trainTokens": 1,
        "evalTokens": 1,
        "trainSequences": 1,
        "longestExample": 1,
        "digest": DIGEST,
    }
    spec: dict[str, Any] = {
        "model": {"uri": "pvc://models/tiny"},
        "dataset": {"train": [{"uri": "pvc://data/rows.jsonl"}]},
        "method": how,
        "training": settings,
        "evaluation": evaluation or {},
    }
    return RunConfig.model_validate(
        {
            "job": {"name": "tiny", "namespace": "default", "uid": "0000"},
            "stage": stage,
            "attempt": attempt,
            "spec": spec,
            "plan": plan,
            "model": facts,
            "data": data,
            "artifactUri": "pvc://finetune-workspace/artifacts/tiny-0000",
            "paths": {
                "modelCache": str(model.parent),
                "rewardCache": str(root / "reward"),
                "job": str(root / "job"),
                "artifact": str(root / "artifact"),
            },
        }
    )


class NoStop:
    """A stop that is never requested."""

    requested = False

    def defer_to_boundary(self) -> None:
        """No signal is handled here."""


def free_port() -> int:
    """A port that no process listens on at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def environment(**more: str) -> dict[str, str]:
    """The environment of a trainer process that a test starts."""
    path = f"{ROOT / 'operator'}:{ROOT / 'trainer_image'}:{ROOT}"
    inherited = os.environ.get("PYTHONPATH", "")
    return {**os.environ, "PYTHONPATH": f"{path}:{inherited}", "OMP_NUM_THREADS": "1", **more}


def torchrun(processes: int, module: str, *arguments: str, seconds: float = 280) -> str:
    """Run a module under torchrun on this machine; a failure shows its output."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes)]
    command += ["--master-addr", "127.0.0.1", "--master-port", str(free_port())]
    done = subprocess.run(
        [*command, "-m", module, *arguments],
        env=environment(),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=seconds,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-6000:]
    return done.stdout


def losses(job: Path, attempt: int = 1) -> list[float]:
    """Training loss of every step of an attempt."""
    lines = (job / "report" / f"train-{attempt}.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


class Runs:
    """The results of the cases of `drive_training` in a folder."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def case_result(self, name: str, rank: int = 0) -> Any:
        """The result of a case as one rank wrote it."""
        return json.loads((self.root / f"{name}-{rank}.json").read_text())

    def job(self, name: str) -> Path:
        """The job's folder."""
        return self.root / name / "job"

    def history(self, name: str, attempt: int = 1) -> list[dict[str, Any]]:
        """The lines of the training history of an attempt."""
        text = (self.job(name) / "report" / f"train-{attempt}.jsonl").read_text()
        return [json.loads(line) for line in text.splitlines()]


def to_json(run: RunConfig) -> Any:
    """The run file as JSON data."""
    return json.loads(run.model_dump_json(by_alias=True, exclude_none=True))


def write_run(run: RunConfig, path: Path) -> Path:
    """The run file on disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(run.model_dump_json(by_alias=True, exclude_none=True))
    return path


def token_array(row: Any) -> np.ndarray:
    """The tokens of a sequence as int64."""
    return np.asarray(row.input_ids, dtype=np.int64)
