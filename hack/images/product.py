"""The images that users run, built from their Dockerfiles and started once, as a check.

Docker does it where an engine answers, else buildah. Images that passed are cached by the digest
of everything that went into them, so that the same content is not built twice.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from hack.cluster.paths import cache_dir
from hack.images import buildah, docker
from hack.images.cache import digest, made
from hack.images.catalog import CONTRACT, OPERATOR, TRAINER
from hack.images.layers import CHECKOUT, sources

BOOTSTRAP_LOCK = CHECKOUT / "hack" / "requirements" / "bootstrap.lock"
IGNORED = CHECKOUT / ".dockerignore"

# Prints who runs, whether the root can be written to, and the versions of what was imported.
PROBE = """
import importlib, json, os, sys
def writable():
    try:
        open("/app/probe", "w").close()
    except OSError:
        return False
    return True
versions = {n: getattr(importlib.import_module(n), "__version__", "") for n in sys.argv[1:]}
print(json.dumps({"uid": os.getuid(), "gid": os.getgid(), "rootIsWritable": writable(),
                  "python": sys.version.split()[0], "versions": versions}))
"""


@dataclass(frozen=True)
class Product:
    """An image of the product, what is copied into it, and what has to work in it."""

    name: str
    folder: Path
    packages: tuple[Path, ...]
    modules: tuple[str, ...]
    command: tuple[str, ...]

    @property
    def dockerfile(self) -> Path:
        """The Dockerfile that users build."""
        return self.folder / "Dockerfile"

    @property
    def tag(self) -> str:
        """Its name in the local engine."""
        return f"localhost/finetune-{self.name}:product"

    @property
    def digest(self) -> str:
        """Names everything that goes into the image."""
        files = [self.dockerfile, self.folder / "requirements.lock", BOOTSTRAP_LOCK, IGNORED]
        files += [path for package in self.packages for path in sources(package)]
        named: list[str | bytes | Path] = [PROBE, *self.modules, *self.command]
        for path in files:
            named += [str(path.relative_to(CHECKOUT)), path]
        return digest(*named)


PRODUCTS = {
    "operator": Product(
        "operator",
        CHECKOUT / "operator",
        (CONTRACT, OPERATOR),
        (
            "kopf",
            "kubernetes",
            "pydantic",
            "aiohttp",
            "finetune_api",
            "finetune_operator.controllers",
        ),
        ("python", "-m", "finetune_operator", "--help"),
    ),
    "trainer": Product(
        "trainer",
        CHECKOUT / "trainer_image",
        (CONTRACT, TRAINER),
        (
            *("torch", "transformers", "peft", "deepspeed", "bitsandbytes"),
            *("s3fs", "gcsfs", "huggingface_hub", "finetune_api", "finetune_trainer"),
        ),
        ("python", "-c", "import finetune_trainer; print(finetune_trainer.__version__)"),
    ),
}


def checked(product: Product) -> dict[str, object]:
    """Build and start the image of `product`, once per content; what was found, with seconds.

    Keys: uid, gid, rootIsWritable, python, versions, output (of its command), buildSeconds,
    startSeconds. Ends with the engine's message when something fails.
    """
    stamps = cache_dir() / "product"
    stamps.mkdir(exist_ok=True)
    stamp = stamps / f"{product.name}-{product.digest}.json"

    def make(scratch: Path) -> None:
        scratch.write_text(json.dumps(_check(product), indent=2))

    made(stamp, make, f"image of {product.folder.name}/Dockerfile")
    found: dict[str, object] = json.loads(stamp.read_text())
    return found


def _check(product: Product) -> dict[str, object]:
    engine: ModuleType = docker if docker.answers() else buildah
    started = time.monotonic()
    engine.build(product.dockerfile, product.tag)
    built = time.monotonic()
    found: dict[str, object] = json.loads(
        _output(engine, product.tag, ("python", "-c", PROBE, *product.modules)).splitlines()[-1]
    )
    found["output"] = _output(engine, product.tag, product.command)
    found["buildSeconds"] = round(built - started, 1)
    found["startSeconds"] = round(time.monotonic() - built, 1)
    return found


def _output(engine: ModuleType, tag: str, command: tuple[str, ...]) -> str:
    done = engine.start(tag, command)
    if done.returncode:
        shown = " ".join(command[:3])
        raise SystemExit(f"{tag}: `{shown}` ended with {done.returncode}:\n{done.stderr[-3000:]}")
    return str(done.stdout)
