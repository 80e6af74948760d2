"""The contract: custom resources, and the files that the operator and the trainer exchange.

Everything here is data: pydantic models with a docstring on every field. The CRDs, their
defaults and the API reference are generated from these models, so a field is described once.
This package imports neither the operator nor the trainer, and only `crd` does I/O.
"""

GROUP = "finetune.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"
