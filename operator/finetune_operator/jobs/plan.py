"""FineTuneJob: what to do next."""

from datetime import datetime

from finetune_operator.decision import Decision, Manifest, Settings, View


def reconcile_job(job: Manifest, view: View, settings: Settings, now: datetime) -> Decision:
    """What a job needs now; `now` must be timezone-aware, in UTC."""
    raise NotImplementedError
