"""The three images of the local cluster: operator, trainer, and vLLM for CPUs.

Layers go from what changes least to what changes most: base, libraries, our code. Trainer and vLLM
share base and libraries, so a node holds them once.
"""

from __future__ import annotations

import os

from hack.images.layers import CHECKOUT, base_layer, code_layer, ml_layer, operator_layer
from hack.images.oci import OciImage

CONTRACT = CHECKOUT / "operator" / "finetune_api"
OPERATOR = CHECKOUT / "operator" / "finetune_operator"
TRAINER = CHECKOUT / "trainer_image" / "finetune_trainer"

NAMES = ("operator", "trainer", "vllm")

_ENVIRONMENT = (
    "PATH=/opt/venv/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "PYTHONDONTWRITEBYTECODE=1",
    "PYTHONUNBUFFERED=1",
    "LANG=C.UTF-8",
    "HOME=/tmp",
)
_CODE = ("PYTHONPATH=/app",)
_PASSED_ON = ("ONEDNN_MAX_CPU_ISA",)
"""Variables of the builder that the images get: ONEDNN_MAX_CPU_ISA=AVX512_CORE hides the bf16
instructions of a CPU from PyTorch, so that `make demo` runs as on a CPU without them."""
_OFFLINE = ("VLLM_NO_USAGE_STATS=1", "DO_NOT_TRACK=1")


def image(name: str) -> OciImage:
    """The image `name` of NAMES, its layers built where the cache lacks them."""
    if name == "operator":
        layers = (base_layer(), operator_layer(), code_layer([CONTRACT, OPERATOR]))
        entrypoint = ["python", "-m", "finetune_operator"]
        return OciImage(reference(name), layers, _settings(_CODE, Entrypoint=entrypoint))
    if name == "trainer":
        layers = (base_layer(), ml_layer(), code_layer([CONTRACT, TRAINER]))
        return OciImage(reference(name), layers, _settings(_CODE))
    return OciImage(reference(name), (base_layer(), ml_layer()), _settings(_OFFLINE))


def reference(name: str) -> str:
    """What pods call the image `name` of NAMES."""
    return f"localhost/finetune-{'vllm-cpu' if name == 'vllm' else name}:dev"


def _settings(environment: tuple[str, ...], **more: object) -> dict[str, object]:
    passed_on = [f"{name}={os.environ[name]}" for name in _PASSED_ON if os.environ.get(name)]
    return {
        "User": "65532:65532",
        "WorkingDir": "/tmp",
        "Env": [*_ENVIRONMENT, *environment, *passed_on],
        **more,
    }
