"""What remains in the workspace after a FineTuneJob was deleted, and who removes it.

Kubernetes collects the children of a deleted job, but not its files. The engine keeps a
Workspace key for every deleted job until `reconcile_workspace` has nothing more to ask for.
"""

from datetime import datetime

from finetune_operator.decision import Decision, Key, Manifest, Settings, View


def workspace_key(job: Manifest) -> Key:
    """The key to enqueue when a FineTuneJob is gone; its name is `<job name>/<job uid>`."""
    meta = job["metadata"]
    return Key("Workspace", meta["namespace"], f"{meta['name']}/{meta['uid']}")


def orphan_keys(view: View) -> tuple[Key, ...]:
    """Keys of deleted jobs whose children are still in the cache.

    Enqueue them once after the first listing: they are the jobs that were deleted while no
    operator was running. Nothing is lost if the same key is enqueued twice.
    """
    raise NotImplementedError


def reconcile_workspace(key: Key, view: View, settings: Settings, now: datetime) -> Decision:
    """What the files of a deleted job need now.

    A Decision without `requeue_after` means done: the key may be forgotten. Decisions carry no
    status. Reads from the View: FineTuneJob, ModelEndpoint, Pod, Job.
    """
    raise NotImplementedError
