"""The kinds and their CustomResourceDefinitions, generated from the pydantic models.

`python -m finetune_api.crd`, run in the root of the checkout, writes a file for each kind to crds/,
the chart's copy of it, and the generated pages of docs/. This module defines the names of a kind,
its columns in `kubectl get` and the rules over the whole object (name, immutability); the models
define everything else.
"""

import argparse
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel

from finetune_api import GROUP, VERSION, combinations_page, reasons_page
from finetune_api.acceleratorprofile import AcceleratorProfileSpec, AcceleratorProfileStatus
from finetune_api.base import CHILD_NAME_MAX, CHILD_NAME_PATTERN, NOT_OBSERVED, cel
from finetune_api.finetunejob import FineTuneJobSpec, FineTuneJobStatus
from finetune_api.modelendpoint import ModelEndpointSpec, ModelEndpointStatus
from finetune_api.reference_page import HEAD, render_section
from finetune_api.schema import Schema, structural_schema

HEADER = "# Generated from the models by `make crds`; edit those.\n"
CHART = Path("charts/finetune-operator-crds/templates")
ALWAYS_MUTABLE = frozenset({"ttlSecondsAfterFinished"})
"""Spec fields that the operator acts on even after the end of a job."""
MUTABLE = ALWAYS_MUTABLE | {"serve", "maxRestarts", "suspend", "activeDeadlineSeconds"}
"""Spec fields that the operator acts on while a job runs."""
KEEP = {"helm.sh/resource-policy": "keep"}


@dataclass(frozen=True)
class Column:
    """A column of `kubectl get`; with priority 1 it appears with -o wide only."""

    name: str
    path: str
    type: Literal["string", "integer", "number", "boolean", "date"] = "string"
    priority: int = 0

    def to_wire(self) -> dict[str, Any]:
        """The column as an entry of additionalPrinterColumns."""
        out: dict[str, Any] = {"name": self.name, "type": self.type, "jsonPath": self.path}
        return out | ({"priority": self.priority} if self.priority else {})


@dataclass(frozen=True)
class Scale:
    """The scale subresource: paths of the number of pods that is desired, of that which exists, and
    of the label selector of the pods."""

    desired: str
    actual: str
    selector: str

    def to_wire(self) -> dict[str, str]:
        """The subresource as the CRD has it."""
        return {
            "specReplicasPath": self.desired,
            "statusReplicasPath": self.actual,
            "labelSelectorPath": self.selector,
        }


@dataclass(frozen=True)
class Kind:
    """A custom resource: its names, its models, its columns and rules over the whole object."""

    name: str
    plural: str
    short: str
    scope: Literal["Namespaced", "Cluster"]
    description: str
    spec: type[BaseModel]
    status: type[BaseModel]
    columns: tuple[Column, ...]
    rules: tuple[dict[str, Any], ...] = ()
    scale: Scale | None = None

    @property
    def crd_name(self) -> str:
        """metadata.name of the CRD."""
        return f"{self.plural}.{GROUP}"


AGE = Column("Age", ".metadata.creationTimestamp", "date")


def _name_rules(children: str) -> tuple[dict[str, Any], ...]:
    return (
        cel(
            f"self.metadata.name.size() <= {CHILD_NAME_MAX}",
            f"metadata.name must have at most {CHILD_NAME_MAX} characters, because {children} "
            "are named after it",
        ),
        cel(
            f"self.metadata.name.matches(r'{CHILD_NAME_PATTERN}')",
            "metadata.name must be lower-case letters, digits and '-', begin with a letter and "
            f"not end with '-', because {children} are named after it",
        ),
    )


@dataclass(frozen=True)
class FreezePoint:
    """Point in a job's life from which on a field is immutable."""

    cel: str
    """CEL over oldSelf that is true from that point on."""
    message: str
    """End of the sentence that begins with the field's name."""


_ENDED = "has(oldSelf.status.phase) && oldSelf.status.phase in ['Succeeded', 'Failed']"
AFTER_START = FreezePoint(
    f"has(oldSelf.status) && (has(oldSelf.status.startedAt) || {_ENDED})",
    f"cannot change after the job has started (only {', '.join(sorted(MUTABLE))} can): restore the "
    "old value and create a new FineTuneJob for the change",
)
AFTER_END = FreezePoint(
    f"has(oldSelf.status) && {_ENDED}",
    f"cannot change after the job has ended (only {', '.join(sorted(ALWAYS_MUTABLE))} can): a job "
    "runs once, so create a new FineTuneJob",
)
AFTER_ROLLOUT = FreezePoint(
    "has(oldSelf.status) && has(oldSelf.status.stages) && oldSelf.status.stages.exists(s, "
    "s.name == 'serve' && has(s.attempt) && s.attempt > 0)",
    "cannot change after the job has handed its model to the endpoint: set spec.artifact of the "
    "ModelEndpoint to serve another model, or create another ModelEndpoint for this one",
)


def _transition_rules(spec: type[BaseModel]) -> tuple[dict[str, Any], ...]:
    """Transition rules: the API server rejects an edit that the operator would ignore."""
    rules = [
        *(
            _unchanged_rule(spec, wire, AFTER_END if wire in MUTABLE else AFTER_START)
            for wire in (field.alias or name for name, field in spec.model_fields.items())
            if wire not in ALWAYS_MUTABLE
        ),
        _unchanged_rule(spec, "serve", AFTER_ROLLOUT),
    ]
    return tuple(rules)


def _unchanged_rule(spec: type[BaseModel], wire: str, point: FreezePoint) -> dict[str, Any]:
    field = next(f for name, f in spec.model_fields.items() if (f.alias or name) == wire)
    new, old = f"self.spec.{wire}", f"oldSelf.spec.{wire}"
    # CEL may read a field without has() only if the API server always sets it.
    always = field.is_required() or field.default_factory or field.default is not None
    same = (
        f"{new} == {old}"
        if always
        else f"(has({new}) ? has({old}) && {new} == {old} : !has({old}))"
    )
    return cel(f"!({point.cel}) || {same}", f"{wire} {point.message}", f".spec.{wire}")


FINETUNEJOB = Kind(
    name="FineTuneJob",
    plural="finetunejobs",
    short="ftj",
    scope="Namespaced",
    description="One fine-tuning run: trains a model on data, evaluates it, exports it and can "
    "serve it.",
    spec=FineTuneJobSpec,
    status=FineTuneJobStatus,
    columns=(
        Column("Phase", ".status.phase"),
        Column("Step", ".status.progress.step", "integer"),
        Column("Steps", ".status.progress.totalSteps", "integer"),
        Column("Loss", ".status.progress.loss", "number"),
        Column("Message", ".status.message"),
        Column("Model", ".spec.model.uri", priority=1),
        Column("Endpoint", ".status.endpoint.name", priority=1),
        Column("Restarts", ".status.restarts", "integer", priority=1),
        AGE,
    ),
    rules=(*_name_rules("Jobs and pods"), *_transition_rules(FineTuneJobSpec)),
)
MODELENDPOINT = Kind(
    name="ModelEndpoint",
    plural="modelendpoints",
    short="mep",
    scope="Namespaced",
    description="A stable name and URL for a served model, whose revisions are immutable.",
    spec=ModelEndpointSpec,
    status=ModelEndpointStatus,
    columns=(
        Column("Phase", ".status.phase"),
        Column("Revision", ".status.activeRevision", "integer"),
        Column("URL", ".status.url"),
        Column("Message", ".status.message"),
        AGE,
    ),
    rules=_name_rules("Services and Deployments"),
    scale=Scale(".spec.replicas", ".status.replicas", ".status.selector"),
)
ACCELERATORPROFILE = Kind(
    name="AcceleratorProfile",
    plural="acceleratorprofiles",
    short="accel",
    scope="Cluster",
    description="A pool of nodes: its sizes and scheduling, as the platform team describes it.",
    spec=AcceleratorProfileSpec,
    status=AcceleratorProfileStatus,
    columns=(
        Column("Default", ".spec.default", "boolean"),
        Column("Resource", ".spec.resourceName"),
        Column("Devices", ".spec.devicesPerNode", "integer"),
        Column("Memory", ".spec.memoryPerDevice"),
        Column("Jobs", ".status.jobs", "integer"),
        Column("Endpoints", ".status.endpoints", "integer"),
        Column("Training", ".status.trainingDevices", "integer"),
        Column("Ready", '.status.conditions[?(@.type=="Ready")].status'),
        Column("Message", ".status.message", priority=1),
        AGE,
    ),
)
KINDS = (FINETUNEJOB, MODELENDPOINT, ACCELERATORPROFILE)


def build_crd(kind: Kind, annotations: dict[str, str] | None = None) -> dict[str, Any]:
    """The CustomResourceDefinition of a kind."""
    version: dict[str, Any] = {
        "name": VERSION,
        "served": True,
        "storage": True,
        "schema": {"openAPIV3Schema": object_schema(kind)},
        "additionalPrinterColumns": [column.to_wire() for column in kind.columns],
        "subresources": {"status": {}},
    }
    if kind.scale:
        version["subresources"]["scale"] = kind.scale.to_wire()
    everywhere = ["finetune", "all"] if kind.scope == "Namespaced" else ["finetune"]
    names = {
        "kind": kind.name,
        "listKind": f"{kind.name}List",
        "plural": kind.plural,
        "singular": kind.name.lower(),
        "shortNames": [kind.short],
        "categories": everywhere,
    }
    metadata: dict[str, Any] = {"name": kind.crd_name}
    if annotations:
        metadata["annotations"] = annotations
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": metadata,
        "spec": {"group": GROUP, "scope": kind.scope, "names": names, "versions": [version]},
    }


def object_schema(kind: Kind) -> Schema:
    """The schema of the whole object."""
    properties: dict[str, Schema] = {
        "apiVersion": {"description": f"{GROUP}/{VERSION}.", "type": "string"},
        "kind": {"description": f"{kind.name}.", "type": "string"},
        "metadata": {"type": "object"},
        "spec": structural_schema(kind.spec, spec=True),
        "status": structural_schema(kind.status, spec=False),
    }
    if kind.scope == "Namespaced":  # whose status every operator writes
        # Without it kstatus would report an object that the operator has not seen as finished.
        properties["status"]["default"] = {"observedGeneration": NOT_OBSERVED}
    out: Schema = {
        "description": kind.description,
        "type": "object",
        "required": ["spec"],
        "properties": properties,
    }
    return out | ({"x-kubernetes-validations": list(kind.rules)} if kind.rules else {})


class _Dumper(yaml.SafeDumper):
    """Quotes strings that other YAML 1.1 parsers than PyYAML read as a boolean or a number."""

    def ignore_aliases(self, data: Any) -> bool:
        """Write every node out instead of an anchor, for human readers."""
        return True


_Dumper.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile("^[yYnN]$"), list("yYnN"))
_Dumper.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def to_yaml(manifest: dict[str, Any]) -> str:
    """The manifest as YAML in the order of its keys; equal input gives equal bytes."""
    body: str = yaml.dump(
        manifest, Dumper=_Dumper, sort_keys=False, width=100, default_flow_style=False
    )
    return HEADER + body


def render_crds(annotations: dict[str, str] | None = None) -> dict[str, str]:
    """File name and content of every CRD."""
    return {f"{GROUP}_{kind.plural}.yaml": to_yaml(build_crd(kind, annotations)) for kind in KINDS}


def render_reference() -> str:
    """The page of the API reference, in Markdown."""
    return "\n".join([HEAD, *(render_section(k.name, _facts(k), object_schema(k)) for k in KINDS)])


def render_pages() -> dict[str, str]:
    """File name and content of every generated page of docs/."""
    return {
        "reference.md": render_reference(),
        "combinations.md": combinations_page.render_page(),
        "reasons.md": reasons_page.render_page(),
    }


def _facts(kind: Kind) -> str:
    where = "namespaced" if kind.scope == "Namespaced" else "cluster-scoped"
    columns = ", ".join(column.name for column in kind.columns)
    return f"Short name `{kind.short}`, {where}. `kubectl get` shows {columns}."


def write_manifests(folder: Path, contents: dict[str, str]) -> None:
    """Write these YAML files, delete all others in the folder, and print the sizes in bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    for stale in sorted(p for p in folder.glob("*.yaml") if p.name not in contents):
        stale.unlink()
    for name, text in contents.items():
        (folder / name).write_text(text)
        print(f"{folder / name}: {len(text.encode())} bytes")


def main(argv: Sequence[str] | None = None) -> int:
    """Command line: write the CRDs and the generated pages."""
    parser = argparse.ArgumentParser(prog="python -m finetune_api.crd", description=__doc__)
    add = parser.add_argument
    add("--crds", type=Path, default=Path("crds"), help="folder of the CRDs")
    add("--chart", type=Path, default=CHART, help="folder of Helm's copy of them")
    add("--docs", type=Path, default=Path("docs"), help="folder of the pages")
    arguments = parser.parse_args(argv)
    write_manifests(arguments.crds, render_crds())
    write_manifests(arguments.chart, render_crds(KEEP))
    arguments.docs.mkdir(parents=True, exist_ok=True)
    for name, text in render_pages().items():
        (arguments.docs / name).write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
