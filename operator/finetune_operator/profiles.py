"""The AcceleratorProfile of a job or an endpoint: the one that it names, or the default one.

Jobs and endpoints get the same answer about a profile that is missing, that cannot be parsed, or
that is not the only default. Pure.
"""

from finetune_api.acceleratorprofile import AcceleratorProfile
from pydantic import ValidationError

from finetune_operator.decision import Manifest, View
from finetune_operator.stalled import Stalled


def find_profile(
    view: View, name: str | None, field: str = "spec.compute.profile"
) -> AcceleratorProfile | Stalled:
    """The profile of this name, else the default one; `field` is where the user names one."""
    if name is not None:
        found = view.get("AcceleratorProfile", "", name)
        if found is None:
            text = f"AcceleratorProfile {name} does not exist; this continues when it is created"
            return Stalled("ProfileNotFound", text)
        return _parse(found)
    defaults = list_defaults(view)
    if not defaults:
        text = f"no AcceleratorProfile is marked as default; mark one, or name one in {field}"
        return Stalled("ProfileNotFound", text)
    if len(defaults) > 1:
        names = ", ".join(profile["metadata"]["name"] for profile in defaults)
        return Stalled(
            "ProfileAmbiguous",
            f"AcceleratorProfiles {names} are all marked as default; leave the mark on one, or "
            f"name one in {field}",
        )
    return _parse(defaults[0])


def list_defaults(view: View) -> list[Manifest]:
    """The profiles that are marked as default, by name; it should be one."""
    return sorted(
        (p for p in view.list("AcceleratorProfile") if (p.get("spec") or {}).get("default")),
        key=lambda profile: str(profile["metadata"]["name"]),
    )


def _parse(manifest: Manifest) -> AcceleratorProfile | Stalled:
    name = manifest["metadata"]["name"]
    try:
        return AcceleratorProfile.model_validate({"name": name, "spec": manifest.get("spec") or {}})
    except ValidationError as error:
        detail = error.errors()[0]
        where = ".".join(str(part) for part in detail["loc"])
        return Stalled("ProfileInvalid", f"AcceleratorProfile {name}: {where}: {detail['msg']}")
