"""Histories: how they are drawn, played, and encoded so that one can be repeated."""

from __future__ import annotations

import base64
import json
import logging
import zlib
from collections import Counter
from typing import NoReturn

from hypothesis import strategies as st

from tests.sim.clock import running
from tests.sim.invariants import Violation, require
from tests.sim.machine import Machine, Step

ACTIONS = tuple(sorted(name[3:] for name in dir(Machine) if name.startswith("do_")))
DRAWN = (
    *ACTIONS,
    *["operator_fault"] * 8,
    *["cut_gang"] * 3,
    *["fill_nodes"] * 2,
    *["create_other_job"] * 2,
    *["other_job_exports"] * 3,
    *["pin"] * 2,
    *["unpin"] * 3,
)
"""The simulation exists for what happens between two calls of the operator, and for zombies, which
are rare: a gang must be training when it is partitioned, and stay undisturbed for a while. Nodes
must be taken before a gang starts. Another job must be created before it exports, and a model
exported before an endpoint is pinned to it."""
SECONDS = (0.5, 2.0, 6.0, 15.0, 40.0, 150.0)
WAITS = (0.0, 0.4, 1.0, 2.0, 4.0, 7.0, 12.0, 40.0)
WRITES_AT_FIRST, WRITES_PER_STEP = 250, 60
"""A history with more writes than this contains a loop."""

History = list[Step]

histories: st.SearchStrategy[History] = st.lists(
    st.builds(
        Step,
        st.sampled_from(DRAWN),
        st.integers(0, 63),
        st.sampled_from(SECONDS),
        st.sampled_from(WAITS),
    ),
    min_size=1,
    max_size=12,
)


class _RaiseErrors(logging.Handler):
    """Turns an error in the engine's log into a violation: the engine catches what plans raise."""

    def emit(self, record: logging.LogRecord) -> NoReturn:
        cause = record.exc_info[1] if record.exc_info else None
        if isinstance(cause, Violation):
            raise cause
        raise Violation(f"the engine logged an error: {record.getMessage()}: {cause!r}") from cause


def listen() -> None:
    """Let errors that the engine logs end a history."""
    log = logging.getLogger("finetune_operator")
    log.handlers[:] = [_RaiseErrors(logging.ERROR)]
    log.setLevel(logging.ERROR)
    log.propagate = False


def play(history: History, met: Counter[str]) -> None:
    """Play a history to its end; raises Violation if a guarantee is violated."""
    machine = Machine(met)
    with running(machine.clock):
        machine.start()
        for step in history:
            machine.play(step)
        machine.settle()
        machine.forget_jobs()
        most = WRITES_AT_FIRST + WRITES_PER_STEP * len(history)
        require(machine.writes <= most, "no loop of writes", writes=machine.writes)


def encode(history: History) -> str:
    """A history as one word."""
    rows = [[s.action, s.which, s.seconds, s.wait] for s in history]
    return base64.urlsafe_b64encode(zlib.compress(json.dumps(rows).encode())).decode()


def decode(word: str) -> History:
    """The history of such a word."""
    rows = json.loads(zlib.decompress(base64.urlsafe_b64decode(word)))
    return [Step(*row) for row in rows]


def described(history: History) -> str:
    """A history for people to read."""
    return "\n".join(
        f"  {n}. {s.action} which={s.which} seconds={s.seconds:g}, then wait {s.wait:g} s"
        for n, s in enumerate(history, 1)
    )
