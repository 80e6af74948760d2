"""Whether a stage may run as the ServiceAccount that its job names, before it is launched.

A cloud exchanges the ServiceAccount of a pod for credentials, so the platform team decides which
ones the authors of jobs may use.
"""

from finetune_operator.decision import Settings
from finetune_operator.stalled import Stalled


def check_service_account(name: str | None, settings: Settings) -> Stalled | None:
    """Why pods may not run as the ServiceAccount `name`; None is that of the installation."""
    allowed = settings.allowed_service_accounts
    if name is None or name in allowed:
        return None
    return Stalled(
        "ServiceAccountNotAllowed",
        f"jobs may not use ServiceAccount {name}; this installation allows "
        f"{', '.join(allowed) or 'none'}: leave spec.serviceAccountName out, name another one, or "
        "ask the platform team to add it to trainer.serviceAccounts of the chart",
    )
