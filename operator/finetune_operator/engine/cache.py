"""The cache: the objects of the cluster that this process has seen, as a reconcile sees them.

Three sources write here, through `event_handlers`: the watches, the lists, and the answers to our
own writes; `writer` itself notes what it deleted, which wakes no key. The last lets a reconcile see
what the one before it wrote. Since they arrive in any order, an object is only ever replaced by a
newer one (resourceVersions of one kind can be compared as numbers, KEP-5504), and an object that
was seen to be deleted does not come back.
"""

from collections import OrderedDict, defaultdict
from collections.abc import Mapping, Sequence

from finetune_operator.decision import HttpResponse, Manifest

INDEXED_PREFIX = "finetune.dev/"
TOMBSTONES = 20_000

Address = tuple[str, str, str]
"""Kind, namespace ('' when cluster-scoped) and name."""


class Cache:
    """Objects by kind, namespace and name, with an index of our labels. A `View`."""

    def __init__(self, responses: Mapping[str, HttpResponse] | None = None) -> None:
        self._kinds: defaultdict[str, defaultdict[str, dict[str, Manifest]]] = defaultdict(
            lambda: defaultdict(dict)
        )
        self._labels: defaultdict[tuple[str, str, str, str], dict[str, Manifest]]
        self._labels = defaultdict(dict)
        self._deleted_uids: OrderedDict[str, None] = OrderedDict()
        self._responses = responses if responses is not None else {}
        self._served: frozenset[tuple[str, str]] = frozenset()

    # The View of a reconcile function.

    def get(self, kind: str, namespace: str, name: str) -> Manifest | None:
        return self._kinds[kind][namespace].get(name)

    def list(self, kind: str, namespace: str | None = None) -> Sequence[Manifest]:
        """All objects of a kind, ordered by namespace and name."""
        spaces = self._kinds[kind]
        names = sorted(spaces) if namespace is None else [namespace]
        return [found for each in names for _, found in sorted(spaces[each].items())]

    def list_by_label(
        self, kind: str, namespace: str, label: str, value: str
    ) -> Sequence[Manifest]:
        """Objects that carry label=value, by name; only finetune.dev/ labels are indexed."""
        if not label.startswith(INDEXED_PREFIX):
            raise KeyError(f"label {label} is not indexed")
        found = self._labels.get((kind, namespace, label, value)) or {}
        return [each for _, each in sorted(found.items())]

    def http_response(self, request_id: str) -> HttpResponse | None:
        return self._responses.get(request_id)

    def serves(self, group: str, kind: str) -> bool:
        """Whether the API server serves this kind and the cache holds its objects."""
        return (group, kind) in self._served

    # Written by the engine.

    def set_served_kinds(self, kinds: frozenset[tuple[str, str]]) -> None:
        """The (group, kind) pairs that are watched from now on."""
        self._served = kinds

    def put(self, manifest: Manifest) -> bool:
        """Store an object; False if the cache has it, or a newer one, or saw it deleted."""
        metadata = manifest["metadata"]
        kind, namespace, name = address_of(manifest)
        old = self._kinds[kind][namespace].get(name)
        if metadata["uid"] in self._deleted_uids or (
            old is not None and not is_newer(manifest, old)
        ):
            return False
        metadata.pop("managedFields", None)  # half of the bytes, and no reconcile reads them
        if old is not None:
            self._unindex(old)
        self._kinds[kind][namespace][name] = manifest
        for label, value in (metadata.get("labels") or {}).items():
            if label.startswith(INDEXED_PREFIX):
                self._labels[kind, namespace, label, value][name] = manifest
        return True

    def remove(self, kind: str, namespace: str, name: str, uid: str) -> Manifest | None:
        """Remove the object with this uid for good; what the cache had of it."""
        self._deleted_uids[uid] = None
        while len(self._deleted_uids) > TOMBSTONES:
            self._deleted_uids.popitem(last=False)
        old = self._kinds[kind][namespace].get(name)
        if old is None or old["metadata"]["uid"] != uid:
            return None  # another object has that name by now
        self._unindex(old)
        return self._kinds[kind][namespace].pop(name)

    def find_absent(
        self, kind: str, namespace: str | None, listed_uids: set[str], version: str
    ) -> Sequence[Manifest]:
        """Objects that a list at `version` would have contained, but whose uids it did not."""
        return [
            each
            for each in self.list(kind, namespace)
            if each["metadata"]["uid"] not in listed_uids
            and version_number(each) <= int(version or 0)
        ]

    def _unindex(self, old: Manifest) -> None:
        kind, namespace, name = address_of(old)
        for label, value in (old["metadata"].get("labels") or {}).items():
            place = (kind, namespace, label, value)
            if place in self._labels:
                self._labels[place].pop(name, None)
                if not self._labels[place]:
                    del self._labels[place]


def address_of(manifest: Manifest) -> Address:
    """Where an object belongs in the cache."""
    metadata = manifest["metadata"]
    return manifest["kind"], metadata.get("namespace", ""), metadata["name"]


def is_newer(manifest: Manifest, old: Manifest) -> bool:
    """Whether the first was written after the second."""
    return version_number(manifest) > version_number(old)


def version_number(manifest: Manifest) -> int:
    """resourceVersion as a number; 0 if it has none."""
    return int(manifest["metadata"].get("resourceVersion") or 0)
