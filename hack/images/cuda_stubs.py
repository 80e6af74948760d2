"""Let PyTorch's CUDA build load on a machine without a GPU and without 3 GB of GPU libraries.

The package index has PyTorch for Linux only as a CUDA build. Its shared objects name cuBLAS, cuDNN,
NCCL and others, so the loader needs those files even if nothing ever calls them. One small library
that defines all the missing functions takes their place under their names. Each of its functions
ends the process with a message: a wrong call is loud, never a silent wrong result.

For the local CPU cluster only. The image for GPUs carries the real libraries.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from pathlib import Path

STUB = "libcpu_only_stub.so"

# Families of libraries that are replaced. libcudart and libcupti are real: PyTorch calls them while
# it is imported.
_SONAME = re.compile(
    r"lib(cublas|cublasLt|cudnn|cufft|cufile|curand|cusparse|cusparseLt|cusolver|nccl|nvrtc"
    r"|nvshmem_host)\.so"
)
_FUNCTION = re.compile(
    r"^(cublas|cudnn|cufft|cuFile|curand|cusparse|cusolver|nccl|pnccl|nvrtc|nvshmem)"
)
_SYMBOL = re.compile(r"^\s*\d+:\s+\S+\s+\S+\s+\w+\s+(\w+)\s+\w+\s+(\S+)\s+([^\s@]+)", re.MULTILINE)


def stub_cuda(torch_lib: Path) -> int:
    """Put the stub library into `torch_lib` (site-packages/torch/lib); how many functions it has.

    Needs gcc and readelf. Raises CalledProcessError when one of them fails.
    """
    objects = [path for path in torch_lib.glob("*.so*") if not path.is_symlink()]
    wanted: set[str] = set()
    defined: set[str] = set()
    sonames: set[str] = set()
    for path in objects:
        undefined_here, defined_here = _symbols(path)
        wanted |= undefined_here
        defined |= defined_here
        sonames |= {name for name in _needed(path) if _SONAME.match(name)}
    functions = sorted(name for name in wanted - defined if _FUNCTION.match(name))
    _compile(functions, torch_lib / STUB)
    for soname in sorted(sonames):
        link = torch_lib / soname
        link.unlink(missing_ok=True)
        link.symlink_to(STUB)
    return len(functions)


def _readelf(option: str, path: Path) -> str:
    command = ["readelf", "-W", option, str(path)]
    clean = {**os.environ, "LC_ALL": "C"}
    return subprocess.run(command, check=True, capture_output=True, text=True, env=clean).stdout


def _symbols(path: Path) -> tuple[set[str], set[str]]:
    """Names that a shared object needs from elsewhere (weak ones aside), and names it defines."""
    undefined: set[str] = set()
    defined: set[str] = set()
    for bind, section, name in _SYMBOL.findall(_readelf("--dyn-syms", path)):
        if section != "UND":
            defined.add(name)
        elif bind != "WEAK":
            undefined.add(name)
    return undefined, defined


def _needed(path: Path) -> list[str]:
    return re.findall(r"NEEDED.*\[(.*)\]", _readelf("-d", path))


def _compile(functions: list[str], target: Path) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch) / "stub.c"
        source.write_text(_source(functions))
        soname = f"-Wl,-soname,{STUB}"
        command = ["gcc", "-shared", "-fPIC", "-O1", soname, "-o", str(target), str(source)]
        subprocess.run(command, check=True)


def _source(functions: list[str]) -> str:
    """C code with one label per function, all jumping to the same message and abort()."""
    labels = "".join(
        f'"  .globl {name}\\n  .type {name},@function\\n{name}: jmp cpu_only_stub@PLT\\n"\n'
        for name in functions
    )
    return (
        "#include <stdio.h>\n#include <stdlib.h>\n"
        "void cpu_only_stub(void) {\n"
        '  fputs("a CUDA function was called, but these are the CPU-only libraries\\n", stderr);\n'
        "  abort();\n}\n"
        f'__asm__(".text\\n"\n{labels});\n'
    )
