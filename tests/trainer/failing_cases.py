"""Cases of `drive_training` that may fail, on two ranks and without dropout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.trainer import pool
from tests.trainer.drive_training import drive
from tests.trainer.jobs import Runs, make_run, to_json, write_data
from tests.trainer.tiny import tiny_model

STRATEGIES = ("DDP", "ZeRO2", "ZeRO3", "FSDP")


class FailingCases(Runs):
    """Cases in one folder, which has the model that all of them train."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.model = tiny_model(root / "models" / "tiny")

    def case(self, name: str, rate: float | None = None, **how: Any) -> dict[str, Any]:
        """A case that may fail; `how` are arguments of `make_run`."""
        write_data(self.root / name / "job" / "data", self.model)
        if how.get("method", "LoRA") == "LoRA":
            how["lora"] = {"dropout": 0}
        run = make_run(self.root / name, self.model, **how)
        changes = {"peak_flops": 1e12, **({"learning_rate": rate} if rate else {})}
        run = run.model_copy(update={"plan": run.require_plan().model_copy(update=changes)})
        return {"name": name, "run": to_json(run), "fails": True}

    def train(
        self, name: str, cases: list[dict[str, Any]], function: Any = drive, *more: Any
    ) -> None:
        """Run the cases in one launch of two ranks."""
        path = self.root / f"{name}.json"
        path.write_text(json.dumps(cases))
        pool.run(function, path, *more, world=2, folder=self.root / f"logs-{name}")
