"""Differences between an object as it is desired and as it is: pure functions on JSON data.

The API server fills in defaults and keeps the fields of other clients, so equality is the wrong
question. `writer` asks three others: does the object have everything that we set (`is_subset`),
which merge-patch turns one into the other (`merge_patch`), and is this the child that we would have
created (`is_same_child`).
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from finetune_operator.decision import HASH_ANNOTATION, Manifest

APPLIED_ANNOTATION = "finetune.dev/applied-hash"


def has_same_owner(desired: Manifest, found: Manifest) -> bool:
    """Whether `found` belongs to the object for which `desired` was made, and is not being
    deleted."""
    owners = set(_owner_uids(desired))
    stays = not found["metadata"].get("deletionTimestamp")
    return stays and bool(owners) and owners <= set(_owner_uids(found))


def is_same_child(desired: Manifest, found: Manifest) -> bool:
    """Whether `found` is what creating `desired` would have made: our owner, the same hash."""
    if _owner_uids(desired) and not has_same_owner(desired, found):
        return False
    hashes = [
        (each["metadata"].get("annotations") or {}).get(HASH_ANNOTATION)
        for each in (desired, found)
    ]
    return hashes[0] == hashes[1] and not found["metadata"].get("deletionTimestamp")


def add_applied_hash(manifest: Manifest) -> Manifest:
    """The manifest with a hash of itself, so that a field that we no longer set is a difference."""
    digest = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()[:16]
    metadata = manifest["metadata"]
    annotations = {**(metadata.get("annotations") or {}), APPLIED_ANNOTATION: digest}
    return {**manifest, "metadata": {**metadata, "annotations": annotations}}


def is_subset(desired: Any, found: Any) -> bool:
    """Whether every field that is set in `desired` has that value in `found`.

    What the server adds to it (defaults, status, fields of others) does not count; lists must have
    equal length.
    """
    if isinstance(desired, Mapping):
        return isinstance(found, Mapping) and all(
            key in found and is_subset(value, found[key]) for key, value in desired.items()
        )
    if isinstance(desired, list | tuple):
        return (
            isinstance(found, list)
            and len(desired) == len(found)
            and all(is_subset(a, b) for a, b in zip(desired, found, strict=True))
        )
    return bool(desired == found) and isinstance(desired, bool) == isinstance(found, bool)


def merge_patch(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON merge-patch (RFC 7386) that turns `old` into `new`; {} when they are equal.

    None in `new` means absent: a merge-patch cannot express anything else.
    """
    patch: dict[str, Any] = {key: None for key in old if new.get(key) is None}
    for key, value in new.items():
        before = old.get(key)
        if value is None:
            continue
        if isinstance(value, Mapping) and isinstance(before, Mapping):
            if inner := merge_patch(before, value):
                patch[key] = inner
        elif not _is_equal(before, value):
            patch[key] = value
    return patch


def _is_equal(old: Any, new: Any) -> bool:
    """JSON equality: True is not 1, but 1.0 is, because the API server writes one for the other."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        return old.keys() == new.keys() and all(_is_equal(old[key], new[key]) for key in old)
    if isinstance(old, list) and isinstance(new, list):
        return len(old) == len(new) and all(map(_is_equal, old, new))
    return bool(old == new) and isinstance(old, bool) == isinstance(new, bool)


def _owner_uids(manifest: Manifest) -> Sequence[str]:
    return [each["uid"] for each in manifest["metadata"].get("ownerReferences") or ()]
