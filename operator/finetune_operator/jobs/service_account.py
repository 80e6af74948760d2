"""Whether a job may run as the ServiceAccount that it names, before a stage is launched.

A cloud exchanges the ServiceAccount of a pod for credentials, so the platform team decides which
ones the authors of jobs may use.
"""

from finetune_api.jobspec import FineTuneJobSpec

from finetune_operator.decision import Settings
from finetune_operator.stalled import Stalled


def check_service_account(spec: FineTuneJobSpec, settings: Settings) -> Stalled | None:
    """Why the job may not run as its ServiceAccount."""
    name, allowed = spec.service_account_name, settings.allowed_service_accounts
    if name is None or name in allowed:
        return None
    return Stalled(
        "ServiceAccountNotAllowed",
        f"jobs may not use ServiceAccount {name}; this installation allows "
        f"{', '.join(allowed) or 'none'}: leave spec.serviceAccountName out, name another one, or "
        "ask the platform team to add it to trainer.serviceAccounts of the chart",
    )
