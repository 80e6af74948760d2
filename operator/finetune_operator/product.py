"""What this operator does, as the engine sees it: a plan for each kind of key."""

from datetime import datetime

from finetune_operator.decision import Decision, Key, Settings, View
from finetune_operator.endpoints.plan import reconcile_endpoint, refused_endpoint
from finetune_operator.jobs.plan import reconcile_job, refused_job
from finetune_operator.jobs.workspace import orphan_keys, reconcile_workspace, workspace_key
from finetune_operator.reconcile import Product


def product(settings: Settings) -> Product:
    """FineTuneJobs, ModelEndpoints, and the files that deleted jobs leave behind."""

    def job(key: Key, view: View, now: datetime) -> Decision | None:
        found = view.get(key.kind, key.namespace, key.name)
        return None if found is None else reconcile_job(found, view, settings, now)

    def endpoint(key: Key, view: View, now: datetime) -> Decision | None:
        found = view.get(key.kind, key.namespace, key.name)
        return None if found is None else reconcile_endpoint(found, view, settings, now)

    def workspace(key: Key, view: View, now: datetime) -> Decision | None:
        return reconcile_workspace(key, view, settings, now)

    plans = {"FineTuneJob": job, "ModelEndpoint": endpoint, "Workspace": workspace}
    refused = {"FineTuneJob": refused_job, "ModelEndpoint": refused_endpoint}
    return Product(plans, refused, farewell=workspace_key, orphans=orphan_keys)
