"""Experiment trackers that receive the metrics of a job's training.

They run in a process of their own: an error of a tracker never stops training.
"""

from typing import Annotated

from pydantic import StringConstraints

from finetune_api.base import (
    NOT_SPACE,
    LocalObjectReference,
    PatternMessage,
    SpecModel,
    cel,
    validation_config,
)
from finetune_api.hosts import RefusedTrackers, RefusedUserInfo

TrackerUri = Annotated[
    str,
    StringConstraints(pattern=rf"^https?://{NOT_SPACE}+$", max_length=1024),
    PatternMessage("trackingUri must start with http:// or https:// and contain no spaces"),
    RefusedUserInfo,
    RefusedTrackers,
]


class WandB(SpecModel):
    """Weights & Biases."""

    project: Annotated[str, StringConstraints(min_length=1, max_length=128)]
    """Project of the run."""
    entity: Annotated[str, StringConstraints(min_length=1, max_length=128)] | None = None
    """User or team that owns the project; absent means the default entity of the API key."""
    offline: bool = False
    """Write the run to the job's report folder and send nothing."""


class MLflow(SpecModel):
    """MLflow."""

    tracking_uri: TrackerUri | None = None
    """Address of the tracking server; absent writes to the job's report folder and sends
    nothing."""
    experiment: Annotated[str, StringConstraints(min_length=1, max_length=256)]
    """Name of the experiment that the run belongs to."""


class Tracking(SpecModel):
    """Trackers that receive training metrics, in addition to /metrics, status and TensorBoard."""

    model_config = validation_config(
        cel(
            "has(self.wandb) || has(self.mlflow)",
            "tracking needs wandb, mlflow or both; leave tracking out for neither",
            ".wandb",
        ),
        cel(
            "!has(self.wandb) || self.wandb.offline || has(self.credentialsSecretRef)",
            "Weights & Biases needs an API key: name a Secret with WANDB_API_KEY in "
            "credentialsSecretRef, or set wandb.offline to true",
            ".credentialsSecretRef",
        ),
    )

    credentials_secret_ref: LocalObjectReference | None = None
    """Secret in the job's namespace with the keys WANDB_API_KEY, MLFLOW_TRACKING_TOKEN,
    MLFLOW_TRACKING_USERNAME or MLFLOW_TRACKING_PASSWORD."""
    wandb: WandB | None = None
    """Log to Weights & Biases; absent means no."""
    mlflow: MLflow | None = None
    """Log to MLflow; absent means no."""
