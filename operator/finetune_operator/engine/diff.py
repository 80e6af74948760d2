"""What differs between an object as it is wanted and as it is: pure functions on JSON data.

The API server fills in defaults and keeps fields of others, so equality is the wrong question.
Three are asked instead: is everything that we set there (`within`), which merge-patch makes one of
the other (`merge_patch`), and is this the child that we would have created (`same_child`).
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from finetune_operator.decision import HASH_ANNOTATION, Manifest
from finetune_operator.engine.kube_client import owner_uids

APPLIED_ANNOTATION = "finetune.dev/applied-hash"


def same_owner(manifest: Manifest, found: Manifest) -> bool:
    """Whether `found` belongs to the object for which `manifest` was made, and stays."""
    wanted = set(owner_uids(manifest))
    stays = not found["metadata"].get("deletionTimestamp")
    return stays and bool(wanted) and wanted <= set(owner_uids(found))


def same_child(manifest: Manifest, found: Manifest) -> bool:
    """Whether `found` is what creating `manifest` would have made: our owner, the same hash."""
    if owner_uids(manifest) and not same_owner(manifest, found):
        return False
    hashes = [
        (each["metadata"].get("annotations") or {}).get(HASH_ANNOTATION)
        for each in (manifest, found)
    ]
    return hashes[0] == hashes[1] and not found["metadata"].get("deletionTimestamp")


def stamped(manifest: Manifest) -> Manifest:
    """The manifest with a hash of itself: by that a field that is no longer set shows, too."""
    digest = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()[:16]
    metadata = manifest["metadata"]
    annotations = {**(metadata.get("annotations") or {}), APPLIED_ANNOTATION: digest}
    return {**manifest, "metadata": {**metadata, "annotations": annotations}}


def within(wanted: Any, found: Any) -> bool:
    """Whether every field that is set in `wanted` has that value in `found`.

    What the server adds to it (defaults, status, others' fields) does not count; lists must have
    equal length.
    """
    if isinstance(wanted, Mapping):
        return isinstance(found, Mapping) and all(
            key in found and within(value, found[key]) for key, value in wanted.items()
        )
    if isinstance(wanted, list | tuple):
        return (
            isinstance(found, list)
            and len(wanted) == len(found)
            and all(within(a, b) for a, b in zip(wanted, found, strict=True))
        )
    return bool(wanted == found) and isinstance(wanted, bool) == isinstance(found, bool)


def merge_patch(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON merge-patch (RFC 7386) that makes `new` of `old`; {} when they are equal.

    None in `new` means absent: a merge-patch could not say anything else.
    """
    patch: dict[str, Any] = {key: None for key in old if new.get(key) is None}
    for key, value in new.items():
        before = old.get(key)
        if value is None:
            continue
        if isinstance(value, Mapping) and isinstance(before, Mapping):
            if inner := merge_patch(before, value):
                patch[key] = inner
        elif not _equal(before, value):
            patch[key] = value
    return patch


def _equal(old: Any, new: Any) -> bool:
    """JSON equality: True is not 1, and 1.0 is, as the API server writes the one for the other."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        return old.keys() == new.keys() and all(_equal(old[key], new[key]) for key in old)
    if isinstance(old, list) and isinstance(new, list):
        return len(old) == len(new) and all(map(_equal, old, new))
    return bool(old == new) and isinstance(old, bool) == isinstance(new, bool)
