"""Experiment trackers that are told the course of a job's training.

They are told beside training: what fails here never stops a run.
"""

from typing import Annotated

from pydantic import StringConstraints

from finetune_api.base import NOT_SPACE, ObjectName, SpecModel, cel, validations

TrackerUri = Annotated[str, StringConstraints(pattern=rf"^https?://{NOT_SPACE}+$", max_length=1024)]


class WandB(SpecModel):
    """Weights & Biases."""

    project: Annotated[str, StringConstraints(min_length=1, max_length=128)]
    """Project of the run."""
    entity: Annotated[str, StringConstraints(min_length=1, max_length=128)] | None = None
    """User or team; absent means the key's own."""
    offline: bool = False
    """Write below the job's report folder and send nothing."""


class MLflow(SpecModel):
    """MLflow."""

    tracking_uri: TrackerUri | None = None
    """Server; absent writes below the job's report folder and sends nothing."""
    experiment: Annotated[str, StringConstraints(min_length=1, max_length=256)]
    """Experiment of the run."""


class Tracking(SpecModel):
    """Where the course of training is told besides /metrics, status and TensorBoard files."""

    model_config = validations(
        cel(
            "has(self.wandb) || has(self.mlflow)",
            "give wandb, mlflow or both; leave tracking out for none",
            ".wandb",
        ),
        cel(
            "!has(self.wandb) || self.wandb.offline || has(self.credentialsSecret)",
            "Weights & Biases takes nothing without a key: name a Secret with WANDB_API_KEY, or "
            "set wandb.offline to true",
            ".credentialsSecret",
        ),
    )

    credentials_secret: ObjectName | None = None
    """Secret in the job's namespace with WANDB_API_KEY, MLFLOW_TRACKING_TOKEN,
    MLFLOW_TRACKING_USERNAME or MLFLOW_TRACKING_PASSWORD."""
    wandb: WandB | None = None
    """Weights & Biases; absent means not."""
    mlflow: MLflow | None = None
    """MLflow; absent means not."""
