"""Compares the installed CRDs with the models of this version, before the process may lead.

The API server rejects what the operator writes with fields that the CRD does not have: statuses,
and the specs of the ModelEndpoints that jobs create. That would stop every job that needs such a
field. So a process whose writes do not fit waits, unready: the previous version keeps the Lease,
and its Deployment keeps that pod. Fields of other specs cannot be set by users yet; their absence
has a meaning, so the process leads and logs what is missing. More than this version knows is fine:
that is a downgrade.

What is installed comes from the OpenAPI document of the group, which every client may read; the
CRDs themselves would need a permission. `main` calls this once; `relist` reports missing CRDs.
"""

import asyncio
import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from finetune_api.crd import KINDS, MODELENDPOINT, object_schema
from finetune_api.schema import ANY_VALUE, Schema

from finetune_operator.decision import Manifest
from finetune_operator.engine.health import Health
from finetune_operator.engine.kinds import FINETUNE_GROUP, resource
from finetune_operator.engine.kube_client import ApiError, KubeClient, NotFound, Unavailable

RETRY = 2.0
REFUSALS = 5
"""Answers 403 or 404 in a row after which the process continues: an API server that has just
started gives them as well, until it knows its roles and CRDs."""
COMMAND = (
    "helm upgrade --install finetune-operator-crds charts/finetune-operator-crds --namespace {}"
)
SHOWN = 10
"""Paths in the log line; the others are counted."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Missing:
    """Paths of what the installed CRDs lack, each with the name of its CRD."""

    read: tuple[str, ...] = ()
    """What only users write."""
    written: tuple[str, ...] = ()
    """What the operator writes."""

    def __str__(self) -> str:
        paths = [*self.written, *self.read]
        more = [f"{len(paths) - SHOWN} more"] if len(paths) > SHOWN else []
        return ", ".join([*paths[:SHOWN], *more])


async def wait_for_crds(client: KubeClient, health: Health, namespace: str) -> bool:
    """Return True once this process may lead; `namespace` is that of the command in the log."""
    wanted = {kind.name: object_schema(kind) for kind in KINDS}
    reported, is_unavailable, refusals = Missing(), False, 0
    while True:
        try:
            document = await client.get_openapi(resource("FineTuneJob").api_version)
        except Unavailable as error:
            if not is_unavailable:
                log.warning("Cannot compare the CRDs, trying again", extra={"error": str(error)})
            is_unavailable = True
            # If it were ready, its Deployment would end the pod of the previous version.
            health.set_unready_reason(f"the CRDs have not been compared: {error}")
            await asyncio.sleep(RETRY)
            continue
        except ApiError as error:
            refusals += 1
            if refusals < REFUSALS:
                health.set_unready_reason(f"the CRDs have not been compared: {error}")
                await asyncio.sleep(RETRY)
                continue
            if not isinstance(error, NotFound):  # `relist` reports CRDs that are not installed
                log.warning("Cannot compare the CRDs, continuing", extra={"error": str(error)})
            break
        is_unavailable, refusals = False, 0
        missing = find_missing(wanted, select_served_schemas(document))
        if missing != reported and missing != Missing():
            extra = {"missing": str(missing), "command": COMMAND.format(namespace)}
            log.error("The CRDs are older than this operator, upgrade them", extra=extra)
        reported = missing
        if not missing.written:
            break
        health.set_unready_reason(f"the CRDs lack {missing}")
        await asyncio.sleep(RETRY)
    health.set_unready_reason(None)
    return True


def select_served_schemas(document: Manifest) -> dict[str, Schema]:
    """The schema of each of our kinds in the OpenAPI document of the group and version."""
    schemas: Iterable[Schema] = document.get("components", {}).get("schemas", {}).values()
    return {
        each["kind"]: schema
        for schema in schemas
        for each in schema.get("x-kubernetes-group-version-kind", ())
        if each["group"] == FINETUNE_GROUP
    }


def find_missing(wanted: Mapping[str, Schema], served: Mapping[str, Schema]) -> Missing:
    """What the schemas by kind lack; a kind that is not served at all does not count."""
    read: list[str] = []
    written: list[str] = []
    for kind in KINDS:
        if kind.name in served:
            for path in _find_missing(wanted[kind.name], served[kind.name], ""):
                is_written = kind is MODELENDPOINT or path.startswith("status")
                (written if is_written else read).append(f"{path} of {kind.crd_name}")
    return Missing(tuple(read), tuple(written))


def _find_missing(wanted: Schema, served: Schema, path: str) -> Iterator[str]:
    if served.get(ANY_VALUE):
        return
    if "enum" in served:
        known = served["enum"]
        yield from (f"{path}={value}" for value in wanted.get("enum", ()) if value not in known)
    fields = served.get("properties", {})
    for name, field in wanted.get("properties", {}).items():
        below = f"{path}.{name}" if path else name
        if name in fields:
            yield from _find_missing(field, fields[name], below)
        else:
            yield below
    for key, mark in (("items", "[]"), ("additionalProperties", "{}")):
        if isinstance(inner := wanted.get(key), dict) and isinstance(served.get(key), dict):
            yield from _find_missing(inner, served[key], path + mark)
