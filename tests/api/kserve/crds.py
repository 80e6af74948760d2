"""KServe's CRDs, generated from the models of its own SDK.

A program: `python crds.py FOLDER` prints the CRDs of InferenceService and ServingRuntime as JSON;
FOLDER holds the installed SDK. It imports only the SDK's models, not `kserve` itself, which would
import a model server. Every field of the SDK becomes a field of a structural schema, so that the
API server rejects all others; UNKNOWN lists the types that the SDK does not describe.
"""

from __future__ import annotations

import importlib
import json
import re
import sys
import types
from pathlib import Path
from typing import Any

Schema = dict[str, Any]

QUANTITY: Schema = {
    "anyOf": [{"type": "integer"}, {"type": "string"}],
    "x-kubernetes-int-or-string": True,
}
ANYTHING: Schema = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
PLAIN: dict[str, Schema] = {
    "str": {"type": "string"},
    "int": {"type": "integer", "format": "int64"},
    "bool": {"type": "boolean"},
    "float": {"type": "number"},
    "datetime": {"type": "string", "format": "date-time"},
    # Go types with a JSON form of their own, which the SDK shows by their fields in memory.
    "KnativeURL": {"type": "string"},
    "KnativeVolatileTime": {"type": "string"},
    "V1Time": {"type": "string", "format": "date-time"},
    "ResourceQuantity": QUANTITY,
    "V1beta1MetricQuantity": QUANTITY,
    # The SDK uses it for objects and for int-or-string; INT_OR_STRING has the fields of the latter.
    "object": ANYTHING,
    "V1ObjectMeta": {"type": "object"},
}
UNKNOWN = {"V1alpha1WorkerSpec", "KnativeDevServingPkgApisServingV1TrafficTarget"}
INT_OR_STRING = {"port", "max_surge", "max_unavailable"}
RENAMED = {
    "K8sIoApiAppsV1DeploymentStrategy": "V1DeploymentStrategy",
    "K8sIoApiAutoscalingV2HorizontalPodAutoscalerBehavior": "V2HorizontalPodAutoscalerBehavior",
}
KINDS = {
    "V1beta1InferenceService": ("v1beta1", "inferenceservices", "inferenceservice"),
    "V1alpha1ServingRuntime": ("v1alpha1", "servingruntimes", "servingruntime"),
}


def load_models(folder: Path) -> dict[str, Any]:
    """The model classes of the SDK."""
    package = types.ModuleType("kserve")
    package.__path__ = [str(folder / "kserve")]
    sys.modules["kserve"] = package
    sys.path.append(str(folder))
    found: dict[str, Any] = {}
    for path in sorted((folder / "kserve" / "models").glob("*.py")):
        if path.stem != "__init__":
            found.update(vars(importlib.import_module(f"kserve.models.{path.stem}")))
    return {name: each for name, each in found.items() if hasattr(each, "openapi_types")}


def schema_of(name: str, known: dict[str, Any]) -> Schema:
    """The structural schema of a type of the SDK."""
    name = RENAMED.get(name, name)
    inner = re.fullmatch(r"(list|List)\[(.+)\]", name)
    if inner:
        return {"type": "array", "items": schema_of(inner[2], known)}
    inner = re.fullmatch(r"(?:dict\(|Dict\[)str, (.+)[)\]]", name)
    if inner:
        return {"type": "object", "additionalProperties": schema_of(inner[1], known)}
    if name in PLAIN:
        return PLAIN[name]
    if name in UNKNOWN:
        return ANYTHING
    model = known.get(name) or getattr(importlib.import_module("kubernetes.client"), name)
    return {"type": "object", "properties": _properties(model, known)}


def crd(name: str, known: dict[str, Any]) -> Schema:
    """The CustomResourceDefinition of a kind."""
    version, plural, singular = KINDS[name]
    schema = schema_of(name, known)
    schema["properties"]["metadata"] = {"type": "object"}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.serving.kserve.io"},
        "spec": {
            "group": "serving.kserve.io",
            "scope": "Namespaced",
            "names": {
                "kind": name.removeprefix("V1beta1").removeprefix("V1alpha1"),
                "plural": plural,
                "singular": singular,
            },
            "versions": [
                {
                    "name": version,
                    "served": True,
                    "storage": True,
                    "schema": {"openAPIV3Schema": schema},
                    "subresources": {"status": {}},
                }
            ],
        },
    }


def _properties(model: Any, known: dict[str, Any]) -> Schema:
    out = {}
    for attribute, kind in model.openapi_types.items():
        number = kind == "object" and attribute in INT_OR_STRING
        out[model.attribute_map[attribute]] = QUANTITY if number else schema_of(kind, known)
    return out


if __name__ == "__main__":
    known = load_models(Path(sys.argv[1]))
    print(json.dumps([crd(name, known) for name in KINDS]))
