"""AcceleratorProfile: its status, for those who watch a pool with `kubectl get`.

A profile belongs to the whole cluster, and so does its status. An operator that watches only some
namespaces would count only those, and two of them would overwrite each other's counts with every
event, so only one that watches all namespaces writes it.
"""

from collections.abc import Mapping
from datetime import datetime

from finetune_api.acceleratorprofile import AcceleratorProfileStatus
from finetune_api.base import Condition, ConditionStatus

from finetune_operator.acceleratorprofiles.use import count_use
from finetune_operator.decision import Decision, Manifest, Settings, View
from finetune_operator.manifest import format_time, merge_conditions
from finetune_operator.profiles import find_profile, list_defaults
from finetune_operator.stalled import Stalled


def reconcile_profile(profile: Manifest, view: View, settings: Settings, now: datetime) -> Decision:
    """The status of a profile; it has no children."""
    metadata = profile["metadata"]
    if not settings.watches_all_namespaces or metadata.get("deletionTimestamp"):
        return Decision()
    problem = find_problem(profile, view)
    use = count_use(metadata["name"], view)
    status = AcceleratorProfileStatus(
        observed_generation=metadata.get("generation") or 0,
        message=problem.message if problem else "",
        conditions=_build_conditions(profile, problem, now),
        jobs=use.jobs,
        endpoints=use.endpoints,
        training_devices=use.training_devices,
    )
    return Decision(status=status.to_wire())


def find_problem(profile: Manifest, view: View) -> Stalled | None:
    """Why the profile cannot be used as it is specified; None where it can."""
    name = profile["metadata"]["name"]
    parsed = find_profile(view, name)
    if isinstance(parsed, Stalled):
        return parsed
    defaults = [each["metadata"]["name"] for each in list_defaults(view)]
    if name not in defaults or len(defaults) == 1:
        return None
    return Stalled(
        "ProfileAmbiguous",
        f"AcceleratorProfiles {', '.join(defaults)} are all marked as default, so jobs and "
        "endpoints that name no profile wait; leave the mark on one",
    )


def _build_conditions(profile: Manifest, problem: Stalled | None, now: datetime) -> list[Condition]:
    desired: Mapping[str, tuple[ConditionStatus, str, str]] = {
        "Ready": ("True", "Usable", ""),
        "Stalled": ("False", "Clear", ""),
    }
    if problem is not None:
        desired = {
            "Ready": ("False", problem.reason, problem.message),
            "Stalled": ("True", problem.reason, problem.message),
        }
    old = AcceleratorProfileStatus.from_stored(profile.get("status"))
    generation = profile["metadata"].get("generation") or 0
    return merge_conditions(old.conditions, desired, generation, format_time(now))
