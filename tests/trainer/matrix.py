"""Every method x objective x strategy that the table of combinations allows.

The cases come from finetune_api.combinations, so a rule that changes there changes what is trained
here. A case is a complete job of the tiny model: prepared by the real prepare stage, planned by the
real planner, trained without a stop, then stopped and resumed, exported, loaded and run.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune_api.acceleratorprofile import AcceleratorProfileSpec
from finetune_api.combinations import refusal_messages
from finetune_api.facts import DataFacts, ModelFacts
from finetune_api.finetunejob import FineTuneJobSpec
from finetune_api.run_config import RunConfig
from finetune_api.train_plan import TrainPlan
from finetune_operator.planner.training_plan import plan_training

from tests.trainer.tiny import tiny_rows, write_rows

METHODS: dict[str, dict[str, Any]] = {
    "Full": {"type": "Full"},
    "LoRA": {"type": "LoRA", "lora": {"rank": 8, "alpha": 16, "dropout": 0.05}},
    "QLoRA": {"type": "QLoRA", "lora": {"rank": 8, "alpha": 16, "dropout": 0.05}},
    "DoRA": {"type": "DoRA", "lora": {"rank": 8, "alpha": 16, "dropout": 0.05}},
    "IA3": {"type": "IA3"},
    "AdaLoRA": {"type": "AdaLoRA", "adalora": {"initialRank": 8, "targetRank": 4}},
    "Prefix": {"type": "Prefix", "prefix": {"virtualTokens": 8}},
    "LoRA on experts": {
        "type": "LoRA",
        "lora": {"rank": 8, "alpha": 16, "dropout": 0},
        "moe": {"experts": True},
    },
    "Full with experts": {"type": "Full", "moe": {}},
}
RATES = {"Full": 3e-3, "Full with experts": 3e-3, "IA3": 5e-2, "Prefix": 2e-2, "AdaLoRA": 2e-2}
OBJECTIVES: dict[str, dict[str, Any]] = {
    "SFT": {},
    "Completion": {},
    "DPO": {},
    "KTO": {},
    "ORPO": {},
    "SimPO": {},
    "Reward": {},
    "GRPO": {
        "grpo": {
            # About half of the completions of a random model end with a vowel.
            "rewards": [{"type": "regex", "pattern": "[aeiou]$"}],
            "generations": 4,
            "maxNewTokens": 8,
            "temperature": 0.2,
            "updates": 2,
        }
    },
}
STRATEGIES: dict[str, dict[str, Any]] = {
    "one process": {"gpusPerNode": 1, "strategy": "DDP"},
    "DDP": {"strategy": "DDP"},
    "ZeRO1": {"strategy": "ZeRO1"},
    "ZeRO2": {"strategy": "ZeRO2"},
    "ZeRO3": {"strategy": "ZeRO3"},
    "FSDP": {"strategy": "FSDP"},
    "ZeRO3 with offload": {"strategy": "ZeRO3", "offload": True},
    "FSDP with offload": {"strategy": "FSDP", "offload": True},
}
STEPS, STOP, BATCH = 8, 3, 8
CPU = AcceleratorProfileSpec(devices_per_node=2, memory_per_device="8Gi")


@dataclass(frozen=True)
class Case:
    """One cell of the matrix."""

    method: str
    objective: str
    strategy: str

    @property
    def name(self) -> str:
        """A readable name that is valid as a file name."""
        return f"{self.method}-{self.objective}-{self.strategy}".replace(" ", "_")

    @property
    def moe(self) -> bool:
        """Whether it needs a mixture-of-experts model."""
        return "experts" in self.method

    @property
    def world(self) -> int:
        """Processes."""
        return 1 if self.strategy == "one process" else 2

    def spec(self) -> FineTuneJobSpec:
        """The job that a user would write."""
        return FineTuneJobSpec.model_validate(
            {
                "model": {"uri": f"pvc://models/{'moe' if self.moe else 'dense'}"},
                "dataset": {"train": [{"uri": f"pvc://data/{self.objective}.jsonl"}]},
                "objective": self.objective,
                **OBJECTIVES[self.objective],
                "method": METHODS[self.method],
                "training": {
                    "epochs": 100,
                    "maxSteps": STEPS,
                    "batchSize": BATCH,
                    "microBatchSize": 2,
                    "learningRate": RATES.get(self.method, 1e-2),
                    "warmupRatio": 0.0,
                    "schedule": "constant",
                    "maxSequenceLength": 96,
                    "precision": "fp32",
                },
                "compute": {"nodes": 1, "gpusPerNode": 2, **STRATEGIES[self.strategy]},
            }
        )

    def refusals(self) -> list[str]:
        """Why the API server rejects the case; empty if it is valid."""
        return refusal_messages(self.spec().to_wire())


EVERY = [Case(*names) for names in itertools.product(METHODS, OBJECTIVES, STRATEGIES)]
ALLOWED = [case for case in EVERY if not case.refusals()]


def pairwise(cases: Sequence[Case]) -> list[Case]:
    """Few cases, chosen greedily, that cover every pair of values of any case."""

    def pairs(case: Case) -> set[tuple[str, str]]:
        values = (f"m:{case.method}", f"o:{case.objective}", f"s:{case.strategy}")
        return set(itertools.combinations(values, 2))

    missing = set().union(*(pairs(case) for case in cases))
    chosen: list[Case] = []
    while missing:
        best = max(cases, key=lambda case: len(pairs(case) & missing))
        chosen.append(best)
        missing -= pairs(best)
    return chosen


def rows_of(objective: str, count: int = 24) -> Iterable[dict[str, Any]]:
    """Rows for the objective, as a user would write them."""
    rows = tiny_rows(count)
    for index, row in enumerate(rows):
        # A few steps are enough to distinguish the right order of words from the wrong one.
        other = " ".join(reversed(row["completion"].split()))
        if objective == "SFT":
            yield dict(row)
        elif objective == "Completion":
            yield {"text": f"{row['prompt']} {row['completion']}"}
        elif objective == "KTO":
            good = index % 2 == 0
            yield {**row, "completion": row["completion"] if good else other, "label": good}
        elif objective == "GRPO":
            yield {"prompt": row["prompt"], "reference": row["completion"]}
        else:
            yield {"prompt": row["prompt"], "chosen": row["completion"], "rejected": other}


def write_data(folder: Path) -> None:
    """Write the data files of the jobs, one for each objective."""
    for objective in OBJECTIVES:
        write_rows(folder / f"{objective}.jsonl", list(rows_of(objective)))


def run_of(case: Case, root: Path, stage: str, attempt: int = 1, **more: Any) -> RunConfig:
    """The run file of a stage of the case below `root`, next to which are `volumes` and `cache`."""
    return RunConfig.model_validate(
        {
            "job": {"name": "cell", "namespace": "default", "uid": "0000"},
            "stage": stage,
            "attempt": attempt,
            "spec": case.spec().to_wire(),
            "artifactUri": "pvc://finetune-workspace/artifacts/cell-0000",
            "paths": {
                "modelCache": str(root.parent / "cache" / ("moe" if case.moe else "dense")),
                "job": str(root / case.name / "job"),
                "artifact": str(root / case.name / "artifact"),
                "volumes": str(root.parent / "volumes"),
            },
            **more,
        }
    )


def plan_of(case: Case, model: ModelFacts, data: DataFacts) -> TrainPlan:
    """The plan of the operator for the case."""
    plan = plan_training(case.spec(), model, data, "cpu", CPU)
    assert isinstance(plan, TrainPlan), plan
    return plan
