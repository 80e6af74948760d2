"""Runs a health check as Argo CD does: Lua 5.1 with the object as the global `obj`.

Argo CD runs health checks in gopher-lua, an implementation of Lua 5.1, and opens the base library,
`table` and two functions of `os`, not `string`, `math` or `io`. What is allowed here is less than
that, so a script that runs here finds all that it uses there.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from finetune_operator.decision import Manifest
from lupa import lua51

ROOT = Path(__file__).resolve().parents[3]
FOLDER = ROOT / "gitops" / "argocd"
KINDS = ("AcceleratorProfile", "FineTuneJob", "ModelEndpoint")
HEALTHS = {"Healthy", "Progressing", "Degraded", "Suspended", "Missing", "Unknown"}
"""The values that Argo CD accepts; any other becomes Unknown."""
ALLOWED = (
    *("assert", "error", "ipairs", "next", "pairs", "pcall", "rawequal", "rawget", "rawset"),
    *("select", "setmetatable", "table", "tonumber", "tostring", "type", "unpack", "xpcall"),
)


def read_script(kind: str) -> str:
    """The health check of a kind."""
    return (FOLDER / f"{kind}.lua").read_text()


def check_health(found: Manifest) -> dict[str, str]:
    """Status and message that the health check of the object's kind returns."""
    return run_script(read_script(found["kind"]), found)


def run_script(script: str, found: Manifest) -> dict[str, str]:
    """Status and message that a health check returns for an object."""
    lua = lua51.LuaRuntime(
        register_eval=False, register_builtins=False, unpack_returned_tuples=True
    )
    remove_methods = 'getmetatable("").__index = nil'
    lua.execute(remove_methods)
    names = lua.globals()
    for name in list(names):
        if name not in ALLOWED:
            names[name] = None
    names["obj"] = lua.table_from(found, recursive=True)
    health: dict[str, Any] = dict(lua.execute(script))
    assert set(health) <= {"status", "message"}
    assert health["status"] in HEALTHS
    return health
