"""Why a job fails for good: its input or its settings. Each subject has a module of its own."""

from finetune_api.reasons.invalid_addresses import ADDRESSES
from finetune_api.reasons.invalid_data import DATA
from finetune_api.reasons.invalid_evaluation import EVALUATION
from finetune_api.reasons.invalid_model import MODEL
from finetune_api.reasons.invalid_settings import SETTINGS
from finetune_api.reasons.reason import Group

_REASONS = (*ADDRESSES, *DATA, *EVALUATION, *MODEL, *SETTINGS)
INPUT = Group(
    "The job failed because of its input or settings",
    "`status.failure` has the reason, the message, file and line where they are known, and the "
    "remedy. The conditions `Succeeded` (`False`) and `Stalled` (`True`) and that of the stage "
    "have the same reason, and a Warning event records it. The operator does not try again: "
    "create a new FineTuneJob.",
    tuple(sorted(_REASONS, key=lambda reason: reason.name.lower())),
)
