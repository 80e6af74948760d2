"""What every contender of `make bench-trainer` is told: one small JSON file.

Read by interpreters of different environments, so it needs nothing but the standard library.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class Setting:
    """The same task for everybody."""

    model: str
    """Folder of the model."""
    train_rows: str
    """JSON lines with prompt and completion."""
    job: str
    """The job's folder as `prepare` left it: token stores of both splits."""
    run: str
    """Run file of this project's trainer."""
    work: str
    """Folder for whatever the contenders write."""
    method: str
    """LoRA or Full."""
    recompute: bool
    """Whether this trainer and the loop recompute activations."""
    device: str
    """cpu or cuda."""
    sequence: int
    """Longest row in tokens."""
    batch_rows: int
    """Packed rows in an optimizer step."""
    micro_rows: int
    """Packed rows in a forward pass."""
    batch_examples: int
    """Unpacked examples that hold as many tokens as an optimizer step of packed rows."""
    steps: int
    learning_rate: float
    rank: int
    alpha: int
    seed: int
    look_every: int
    """Steps between two looks at the held-out loss."""
    held_out: int
    """Held-out examples looked at."""

    @classmethod
    def read(cls, path: str) -> Setting:
        """The setting in a file."""
        return cls(**json.loads(Path(path).read_text()))

    def write(self, path: Path) -> None:
        """Write it for the contenders."""
        path.write_text(json.dumps(asdict(self), indent=1))
