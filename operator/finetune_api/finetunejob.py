"""FineTuneJob: the models of its spec and of its status that other packages use, from one import.

The spec is defined in finetune_api.jobspec, the status in finetune_api.jobstatus.
"""

from finetune_api.dataset import Columns, Dataset, DataSource, TrainSource
from finetune_api.evaluation import Baseline, Evaluation, GateRule
from finetune_api.jobspec import Compute, FineTuneJobSpec, Serve
from finetune_api.jobstatus import (
    EndpointRef,
    FineTuneJobStatus,
    JobProgress,
    Phase,
    StageState,
    StageStatus,
)
from finetune_api.method import IA3, AdaLoRA, LoRA, Method, MixtureOfExperts, Prefix, Quantization
from finetune_api.model import ModelAddress, ModelSource, RopeScaling, Tokenizer
from finetune_api.objective import (
    DPO,
    GRPO,
    KTO,
    ORPO,
    SFT,
    Objective,
    Reward,
    RewardFunction,
    SimPO,
)
from finetune_api.tracking import MLflow, Tracking, WandB
from finetune_api.training import Checkpointing, EarlyStopping, Training

__all__ = [
    "DPO",
    "GRPO",
    "IA3",
    "KTO",
    "ORPO",
    "SFT",
    "AdaLoRA",
    "Baseline",
    "Checkpointing",
    "Columns",
    "Compute",
    "DataSource",
    "Dataset",
    "EarlyStopping",
    "EndpointRef",
    "Evaluation",
    "FineTuneJobSpec",
    "FineTuneJobStatus",
    "GateRule",
    "JobProgress",
    "LoRA",
    "MLflow",
    "Method",
    "MixtureOfExperts",
    "ModelAddress",
    "ModelSource",
    "Objective",
    "Phase",
    "Prefix",
    "Quantization",
    "Reward",
    "RewardFunction",
    "RopeScaling",
    "Serve",
    "SimPO",
    "StageState",
    "StageStatus",
    "Tokenizer",
    "Tracking",
    "TrainSource",
    "Training",
    "WandB",
]
