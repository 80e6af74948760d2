"""What an API server does, as cases that hold for kube-apiserver and for the in-memory one.

Each case is a function of a client (the operator's own interface) and a namespace; it returns what
it observed, which must be the same on both and equal to the expected value. Where the in-memory
server differs on purpose:

- it has no schemas, defaults and permissions; refusals by CEL are stand-ins (machine.py);
- server-side apply replaces lists as a whole, and has one manager;
- deletion is always in the background; names are never generated;
- a pod's grace ends when its kubelet says so, never by itself.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from finetune_operator.decision import MANAGED_BY_LABEL, MANAGER, Manifest, ObjectRef
from finetune_operator.engine.kinds import resource
from finetune_operator.engine.kube_client import ApiError


class Server(Protocol):
    """The part of KubeClient that cases use."""

    async def get(self, kind: str, namespace: str, name: str) -> Manifest: ...
    async def create(self, manifest: Manifest) -> Manifest: ...
    async def apply(self, manifest: Manifest) -> Manifest: ...
    async def replace(self, manifest: Manifest) -> Manifest: ...
    async def patch(
        self, kind: str, namespace: str, name: str, patch: Any, subresource: str = ""
    ) -> Manifest: ...
    async def delete(self, ref: ObjectRef) -> Manifest: ...
    async def list(self, of: Any, namespace: str = "") -> tuple[list[Manifest], str]: ...


Case = Callable[[Server, str], Awaitable[object]]
CASES: dict[str, tuple[Case, object]] = {}


def case(expected: object) -> Callable[[Case], Case]:
    """Add a case and its expected observation."""

    def add(function: Case) -> Case:
        CASES[function.__name__] = function, expected
        return function

    return add


def job(namespace: str, **spec: Any) -> Manifest:
    """A FineTuneJob that the schema accepts."""
    return {
        "apiVersion": "finetune.dev/v1alpha1",
        "kind": "FineTuneJob",
        "metadata": {"name": "a", "namespace": namespace},
        "spec": {
            "model": {"uri": "hf://org/model"},
            "dataset": {"train": [{"uri": "s3://bucket/a.jsonl"}]},
            **spec,
        },
    }


def config_map(namespace: str, name: str = "c", **more: Any) -> Manifest:
    """A ConfigMap with one entry."""
    metadata = {"name": name, "namespace": namespace, **more.pop("metadata", {})}
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": metadata,
        "data": {"one": "1"},
        **more,
    }


def batch_job(namespace: str) -> Manifest:
    """A batch Job that no controller runs."""
    container = {"name": "main", "image": "none"}
    template = {"spec": {"restartPolicy": "Never", "containers": [container]}}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": "j", "namespace": namespace},
        "spec": {"suspend": True, "template": template},
    }


def ref(found: Manifest, uid: str | None = None) -> ObjectRef:
    """A reference to an object."""
    meta = found["metadata"]
    return ObjectRef(found["kind"], meta["namespace"], meta["name"], uid)


async def refusal(call: Awaitable[Any]) -> str:
    """The class of the error that a call ends with."""
    try:
        await call
    except ApiError as error:
        return type(error).__name__
    return "none"


def version(found: Manifest) -> int:
    """resourceVersion as a number."""
    return int(found["metadata"]["resourceVersion"])


# Creating and reading


@case(("NotFound", "AlreadyExists", "Unavailable"))
async def names_and_versions_at_creation(api: Server, ns: str) -> object:
    missing = await refusal(api.get("ConfigMap", ns, "c"))
    await api.create(config_map(ns))
    taken = await refusal(api.create(config_map(ns)))
    versioned = config_map(ns, "d", metadata={"resourceVersion": "7"})
    return missing, taken, await refusal(api.create(versioned))


@case((1, True, {"observedGeneration": -1}, True))
async def what_the_server_adds_to_a_new_object(api: Server, ns: str) -> object:
    made = await api.create({**job(ns), "status": {"phase": "Failed"}})
    meta = made["metadata"]
    return (
        meta["generation"],
        bool(meta["uid"]),
        made.get("status"),
        bool(meta["creationTimestamp"]),
    )


@case((True, False))
async def a_second_object_of_a_name_has_another_uid(api: Server, ns: str) -> object:
    first = await api.create(config_map(ns))
    await api.delete(ref(first))
    second = await api.create(config_map(ns))
    return version(second) > version(first), first["metadata"]["uid"] == second["metadata"]["uid"]


@case((["c", "d"], True))
async def a_list_is_ordered_selected_and_has_a_version(api: Server, ns: str) -> object:
    ours = {"labels": {MANAGED_BY_LABEL: MANAGER}}
    for name in ("d", "c"):
        newest = await api.create(config_map(ns, name, metadata=ours))
    await api.create(config_map(ns, "e"))
    items, at = await api.list(resource("ConfigMap"), ns)
    names = [each["metadata"]["name"] for each in items]
    return names, int(at) >= version(newest)


# resourceVersion and generation


@case((True, False))
async def versions_count_writes_of_all_objects(api: Server, ns: str) -> object:
    first = await api.create(config_map(ns, "c"))
    second = await api.create(config_map(ns, "d"))
    again = await api.patch("ConfigMap", ns, "c", {"data": {"two": "2"}})
    return version(first) < version(second) < version(again), version(first) == version(again)


@case((True, True, True))
async def a_write_that_changes_nothing_is_none(api: Server, ns: str) -> object:
    await api.create(job(ns, maxRestarts=3))
    # The first write to kube-apiserver stores the default of the status.
    made = await api.patch("FineTuneJob", ns, "a", {"status": {"phase": "Queued"}}, "status")
    meta = {"metadata": {"resourceVersion": made["metadata"]["resourceVersion"]}}
    fenced = await api.patch("FineTuneJob", ns, "a", meta, "status")
    same = await api.patch("FineTuneJob", ns, "a", {"spec": {"maxRestarts": 3}})
    put = await api.replace(same)
    return (
        version(fenced) == version(made),
        version(same) == version(made),
        version(put) == version(made),
    )


@case((1, 2, 2, 2))
async def generation_counts_changes_of_the_spec_only(api: Server, ns: str) -> object:
    made = await api.create(job(ns))
    edited = await api.patch("FineTuneJob", ns, "a", {"spec": {"maxRestarts": 7}})
    status_written = await api.patch(
        "FineTuneJob", ns, "a", {"status": {"phase": "Queued"}}, "status"
    )
    label = await api.patch("FineTuneJob", ns, "a", {"metadata": {"labels": {"x": "y"}}})
    return tuple(each["metadata"]["generation"] for each in (made, edited, status_written, label))


@case((1, 2))
async def generation_of_a_job_counts_its_spec(api: Server, ns: str) -> object:
    made = await api.create(batch_job(ns))
    edited = await api.patch("Job", ns, "j", {"spec": {"suspend": False}})
    return made["metadata"]["generation"], edited["metadata"]["generation"]


@case((None, None))
async def a_configmap_has_no_generation(api: Server, ns: str) -> object:
    made = await api.create(config_map(ns))
    edited = await api.patch("ConfigMap", ns, "c", {"data": {"two": "2"}})
    return made["metadata"].get("generation"), edited["metadata"].get("generation")


# The status is a subresource


@case(({"observedGeneration": -1}, "Queued", 3))
async def neither_room_writes_into_the_other(api: Server, ns: str) -> object:
    await api.create(job(ns, maxRestarts=3))
    main = await api.patch("FineTuneJob", ns, "a", {"status": {"phase": "Failed"}})
    both = {"status": {"phase": "Queued"}, "spec": {"maxRestarts": 9}}
    status = await api.patch("FineTuneJob", ns, "a", both, "status")
    return main.get("status"), status["status"]["phase"], status["spec"]["maxRestarts"]


@case({"phase": "Queued"})
async def a_replacement_keeps_the_status(api: Server, ns: str) -> object:
    made = await api.create(job(ns))
    await api.patch("FineTuneJob", ns, "a", {"status": {"phase": "Queued"}}, "status")
    current = await api.get("FineTuneJob", ns, "a")
    current = {**current, "status": {"phase": "Failed"}, "spec": made["spec"]}
    return {"phase": (await api.replace(current))["status"]["phase"]}


@case(({"phase": "Queued"}, "NotFound"))
async def null_removes_and_a_missing_object_has_no_status(api: Server, ns: str) -> object:
    await api.create(job(ns))
    first = {"status": {"phase": "Queued", "message": "waits"}}
    await api.patch("FineTuneJob", ns, "a", first, "status")
    left = await api.patch("FineTuneJob", ns, "a", {"status": {"message": None}}, "status")
    kept = {k: v for k, v in left["status"].items() if k in ("phase", "message") and v}
    gone = await refusal(api.patch("FineTuneJob", ns, "b", {"status": {}}, "status"))
    return kept, gone


@case(({"b": {"c": "1"}}, ["2"]))
async def merge_patch_merges_maps_and_replaces_lists(api: Server, ns: str) -> object:
    meta = {"annotations": {"b": "1"}, "finalizers": ["x.example/1"]}
    made = await api.create(config_map(ns, metadata=meta))
    patch = {"metadata": {"annotations": {"c": "1", "b": None}, "finalizers": ["x.example/2"]}}
    found = (await api.patch("ConfigMap", ns, "c", patch))["metadata"]
    await api.patch("ConfigMap", ns, "c", {"metadata": {"finalizers": None}})
    assert made["metadata"]["annotations"] == {"b": "1"}
    return {"b": found["annotations"]}, [each[-1] for each in found["finalizers"]]


# Preconditions


@case(("Conflict", "Conflict", "none"))
async def a_patch_with_an_old_version_is_refused(api: Server, ns: str) -> object:
    old = await api.create(job(ns))
    new = await api.patch("FineTuneJob", ns, "a", {"spec": {"maxRestarts": 7}})

    def fenced(found: Manifest, patch: Manifest) -> Manifest:
        return {"metadata": {"resourceVersion": found["metadata"]["resourceVersion"]}, **patch}

    status = {"status": {"phase": "Queued"}}
    return (
        await refusal(api.patch("FineTuneJob", ns, "a", fenced(old, status), "status")),
        await refusal(api.patch("FineTuneJob", ns, "a", fenced(old, {}), "status")),
        await refusal(api.patch("FineTuneJob", ns, "a", fenced(new, status), "status")),
    )


@case(("Conflict", "none", "NotFound"))
async def a_replacement_needs_the_newest_version(api: Server, ns: str) -> object:
    old = await api.create(config_map(ns))
    new = await api.patch("ConfigMap", ns, "c", {"data": {"two": "2"}})
    late = await refusal(api.replace({**old, "data": {"three": "3"}}))
    good = await refusal(api.replace({**new, "data": {"three": "3"}}))
    await api.delete(ref(new))
    return late, good, await refusal(api.replace({**new, "data": {"four": "4"}}))


@case("Invalid")
async def a_custom_object_is_not_replaced_blindly(api: Server, ns: str) -> object:
    made = await api.create(job(ns))
    meta = {k: v for k, v in made["metadata"].items() if k != "resourceVersion"}
    return await refusal(api.replace({**made, "metadata": meta}))


@case(("Conflict", "none", "NotFound"))
async def only_the_object_that_was_meant_is_deleted(api: Server, ns: str) -> object:
    first = await api.create(config_map(ns))
    uid = first["metadata"]["uid"]
    await api.delete(ref(first, uid))
    second = await api.create(config_map(ns))
    return (
        await refusal(api.delete(ref(second, uid))),
        await refusal(api.delete(ref(second, second["metadata"]["uid"]))),
        await refusal(api.delete(ref(second, uid))),
    )


@case(("Invalid", "none"))
async def an_immutable_configmap_may_only_be_labelled(api: Server, ns: str) -> object:
    await api.create(config_map(ns, immutable=True))
    changed = await refusal(api.patch("ConfigMap", ns, "c", {"data": {"one": "2"}}))
    labelled = {"metadata": {"labels": {"x": "y"}}}
    return changed, await refusal(api.patch("ConfigMap", ns, "c", labelled))


@case("Invalid")
async def the_template_of_a_job_cannot_change(api: Server, ns: str) -> object:
    await api.create(batch_job(ns))
    spec = {"template": {"spec": {"containers": [{"name": "main", "image": "other"}]}}}
    return await refusal(api.patch("Job", ns, "j", {"spec": spec}))


@case(("none", "Invalid", "none"))
async def a_job_that_has_begun_keeps_its_spec(api: Server, ns: str) -> object:
    await api.create(job(ns))
    early = await refusal(api.patch("FineTuneJob", ns, "a", {"spec": {"objective": "Completion"}}))
    begun = {"status": {"startedAt": "2026-01-05T12:00:00Z"}}
    await api.patch("FineTuneJob", ns, "a", begun, "status")
    late = await refusal(api.patch("FineTuneJob", ns, "a", {"spec": {"objective": "SFT"}}))
    return (
        early,
        late,
        await refusal(api.patch("FineTuneJob", ns, "a", {"spec": {"suspend": True}})),
    )


# Deletion


@case(("Status", "NotFound"))
async def what_nothing_holds_goes_at_once(api: Server, ns: str) -> object:
    made = await api.create(config_map(ns))
    return (await api.delete(ref(made)))["kind"], await refusal(api.get("ConfigMap", ns, "c"))


@case(("ConfigMap", True, 0, "AlreadyExists", "NotFound"))
async def a_finalizer_keeps_an_object_until_it_goes(api: Server, ns: str) -> object:
    made = await api.create(config_map(ns, metadata={"finalizers": ["x.example/1"]}))
    held = await api.delete(ref(made))
    name_taken = await refusal(api.create(config_map(ns)))
    await api.patch("ConfigMap", ns, "c", {"metadata": {"finalizers": None}})
    gone = await refusal(api.get("ConfigMap", ns, "c"))
    meta = held["metadata"]
    marked, grace = bool(meta["deletionTimestamp"]), meta["deletionGracePeriodSeconds"]
    return held["kind"], marked, grace, name_taken, gone


@case((1, 2, 2))
async def deletion_of_a_held_object_is_a_new_generation_once(api: Server, ns: str) -> object:
    manifest = job(ns)
    manifest["metadata"]["finalizers"] = ["x.example/1"]
    made = await api.create(manifest)
    first = await api.delete(ref(made))
    second = await api.delete(ref(made))
    await api.patch("FineTuneJob", ns, "a", {"metadata": {"finalizers": None}})
    return tuple(each["metadata"]["generation"] for each in (made, first, second))


@case(("Invalid", True))
async def a_going_object_takes_no_new_finalizer(api: Server, ns: str) -> object:
    made = await api.create(config_map(ns, metadata={"finalizers": ["x.example/1"]}))
    await api.delete(ref(made))
    more = {"metadata": {"finalizers": ["x.example/1", "x.example/2"]}}
    refused = await refusal(api.patch("ConfigMap", ns, "c", more))
    held = await api.get("ConfigMap", ns, "c")
    await api.patch("ConfigMap", ns, "c", {"metadata": {"finalizers": None}})
    return refused, "deletionTimestamp" in held["metadata"]


@case((True, False))
async def a_client_cannot_set_what_is_the_servers(api: Server, ns: str) -> object:
    lie = {"uid": "0", "deletionTimestamp": "2026-01-05T12:00:00Z", "generation": 7}
    made = await api.create(config_map(ns, metadata=lie))
    return made["metadata"]["uid"] != "0", "deletionTimestamp" in made["metadata"]


# Server-side apply


@case(("1", True))
async def apply_creates_and_then_changes_nothing(api: Server, ns: str) -> object:
    first = await api.apply(config_map(ns))
    second = await api.apply(config_map(ns))
    return first["data"]["one"], version(first) == version(second)


@case({"two": "2", "theirs": "x"})
async def apply_removes_what_it_no_longer_names_and_nothing_else(api: Server, ns: str) -> object:
    await api.apply(config_map(ns))
    await api.patch("ConfigMap", ns, "c", {"data": {"theirs": "x"}})
    found = await api.apply({**config_map(ns), "data": {"two": "2"}})
    return found["data"]


@case({"one": "1", "theirs": "x"})
async def apply_takes_over_what_others_set(api: Server, ns: str) -> object:
    await api.create({**config_map(ns), "data": {"one": "0", "theirs": "x"}})
    return (await api.apply(config_map(ns)))["data"]


@case((1, 2, 2))
async def apply_counts_generations_like_any_write(api: Server, ns: str) -> object:
    first = await api.apply(job(ns))
    second = await api.apply(job(ns, maxRestarts=7))
    third = await api.apply(job(ns, maxRestarts=7))
    return tuple(each["metadata"]["generation"] for each in (first, second, third))


@case("Conflict")
async def apply_to_an_object_that_is_gone_by_uid_is_refused(api: Server, ns: str) -> object:
    made = await api.create(config_map(ns))
    await api.delete(ref(made))
    meta = {"uid": made["metadata"]["uid"]}
    return await refusal(api.apply(config_map(ns, metadata=meta)))
