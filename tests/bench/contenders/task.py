"""The task of every contender of `make bench-trainer`, as a small JSON file.

Interpreters of different environments read it, so it needs only the standard library.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class Task:
    """The same for all contenders."""

    model: str
    """Folder of the model."""
    train_file: str
    """JSON lines with prompt and completion."""
    job: str
    """The job's folder as the prepare stage left it: token stores of both splits."""
    run: str
    """Run file for this project's trainer."""
    work: str
    """Folder for everything that the contenders write."""
    method: str
    """LoRA or Full."""
    precision: str
    """bf16 or fp32."""
    gradient_checkpointing: bool
    """Whether this trainer and the hand-written loop recompute activations."""
    device: str
    """cpu or cuda."""
    max_length: int
    """Of a sequence, in tokens."""
    batch_sequences: int
    """Packed sequences in an optimizer step."""
    micro_batch_size: int
    """Packed sequences in a forward pass."""
    batch_samples: int
    """Unpacked samples with as many tokens as an optimizer step of packed sequences."""
    steps: int
    learning_rate: float
    rank: int
    alpha: int
    seed: int
    evaluate_every: int
    """Steps between two evaluations of the held-out loss."""
    held_out_samples: int
    """Samples that the held-out loss is computed on."""

    @classmethod
    def read(cls, path: str) -> Task:
        return cls(**json.loads(Path(path).read_text()))

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self), indent=1))
