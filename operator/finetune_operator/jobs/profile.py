"""Which AcceleratorProfile a job runs on."""

from finetune_api.acceleratorprofile import AcceleratorProfile

from finetune_operator.decision import View
from finetune_operator.jobs.stall_checks import Stall
from finetune_operator.profiles import NoProfile, find_profile


def find_pool(view: View, name: str | None) -> AcceleratorProfile | Stall:
    """The profile of this name, or the default one; what is missing if there is none."""
    found = find_profile(view, name, "spec.compute.profile")
    return Stall(found.reason, found.message) if isinstance(found, NoProfile) else found
