"""Plans, refusals and trainable parameters of jobs, for the planner's tests."""

from __future__ import annotations

from finetune_api.acceleratorprofile import AcceleratorProfileSpec
from finetune_api.facts import DataFacts, ModelFacts
from finetune_api.failure import Failure
from finetune_api.finetunejob import FineTuneJobSpec
from finetune_api.train_plan import TrainPlan
from finetune_operator.planner.parameters import trainable_parameters
from finetune_operator.planner.training_plan import plan_training

from tests.unit.planner.facts import DATA, H100, spec

FULL = {"type": "Full"}


def plan(
    model: ModelFacts,
    profile: AcceleratorProfileSpec = H100,
    data: DataFacts = DATA,
    **fields: object,
) -> TrainPlan:
    """The plan of a job that can be trained."""
    found = plan_training(spec(**fields), model, data, "pool", profile)
    assert isinstance(found, TrainPlan), found
    return found


def refusal(
    model: ModelFacts,
    profile: AcceleratorProfileSpec = H100,
    data: DataFacts = DATA,
    **fields: object,
) -> Failure:
    """The failure of a job that cannot be trained."""
    found = plan_training(spec(**fields), model, data, "pool", profile)
    assert isinstance(found, Failure), found
    return found


def trained(facts: ModelFacts, **method: object) -> int:
    """The number of parameters that a method trains."""
    job: FineTuneJobSpec = spec(method=method)
    return trainable_parameters(facts, job.method)
