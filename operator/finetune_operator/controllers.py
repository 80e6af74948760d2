"""What this operator does, as the engine sees it: a plan for each kind of key."""

from collections.abc import Iterator
from datetime import datetime

from finetune_operator.decision import Decision, Key, Settings, View
from finetune_operator.endpoints.plan import reconcile_endpoint, refused_endpoint
from finetune_operator.engine.reconciler import Controllers
from finetune_operator.jobs.plan import reconcile_job, refused_job
from finetune_operator.workspaces.plan import reconcile_workspace, workspace_key, workspace_keys


def controllers(settings: Settings) -> Controllers:
    """FineTuneJobs, ModelEndpoints, and what nobody needs any more in a workspace."""

    def job(key: Key, view: View, now: datetime) -> Decision | None:
        found = view.get(key.kind, key.namespace, key.name)
        return None if found is None else reconcile_job(found, view, settings, now)

    def endpoint(key: Key, view: View, now: datetime) -> Decision | None:
        found = view.get(key.kind, key.namespace, key.name)
        return None if found is None else reconcile_endpoint(found, view, settings, now)

    def workspace(key: Key, view: View, now: datetime) -> Decision | None:
        return reconcile_workspace(key, view, settings, now)

    def orphans(view: View) -> Iterator[Key]:
        return workspace_keys(view, settings)

    plans = {"FineTuneJob": job, "ModelEndpoint": endpoint, "Workspace": workspace}
    refused = {"FineTuneJob": refused_job, "ModelEndpoint": refused_endpoint}
    return Controllers(plans, refused, on_deleted=workspace_key, initial_keys=orphans)
