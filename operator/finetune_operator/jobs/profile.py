"""Which AcceleratorProfile a job runs on."""

from dataclasses import dataclass

from finetune_api.acceleratorprofile import AcceleratorProfileSpec
from pydantic import ValidationError

from finetune_operator.decision import Manifest, View
from finetune_operator.jobs.stall import Stall


@dataclass(frozen=True)
class Pool:
    """A profile and its name."""

    name: str
    spec: AcceleratorProfileSpec


def find_pool(view: View, name: str | None) -> Pool | Stall:
    """The profile of this name, or the default one; what is missing if there is none."""
    if name is not None:
        found = view.get("AcceleratorProfile", "", name)
        if found is None:
            return Stall(
                "ProfileNotFound",
                f"AcceleratorProfile {name} does not exist; the job goes on when it is created",
            )
        return _pool(found)
    defaults = sorted(
        (p for p in view.list("AcceleratorProfile") if (p.get("spec") or {}).get("default")),
        key=lambda profile: str(profile["metadata"]["name"]),
    )
    if not defaults:
        return Stall(
            "ProfileNotFound",
            "no AcceleratorProfile is marked as default; mark one, or name one in "
            "spec.compute.profile",
        )
    if len(defaults) > 1:
        names = ", ".join(profile["metadata"]["name"] for profile in defaults)
        return Stall(
            "ProfileAmbiguous",
            f"AcceleratorProfiles {names} are all marked as default; leave the mark on one, or "
            "name one in spec.compute.profile",
        )
    return _pool(defaults[0])


def _pool(manifest: Manifest) -> Pool | Stall:
    name = manifest["metadata"]["name"]
    try:
        return Pool(name, AcceleratorProfileSpec.model_validate(manifest.get("spec") or {}))
    except ValidationError as error:
        detail = error.errors()[0]
        where = ".".join(str(part) for part in detail["loc"])
        return Stall("ProfileInvalid", f"AcceleratorProfile {name}: {where}: {detail['msg']}")
