"""`python -m tests.sim`: simulate ten thousand histories, and report what happened in them.

hypothesis draws the histories and shortens one that violates a guarantee; the shards run in
processes of their own, each with its own seed, so that the same numbers repeat the same histories.
Exit status 1 if a guarantee was violated, or if something that must happen never did: a simulation
without faults proves nothing.
"""

from __future__ import annotations

import argparse
import logging
import random
import sys
import time
import traceback
import zlib
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field

from hypothesis import HealthCheck, Phase, given, seed, settings

from tests.sim.coverage import missing
from tests.sim.history import History, decode, described, encode, histories, listen, play

ENOUGH = 5000
"""Histories after which, by experience, everything that must happen has happened."""


@dataclass
class Shard:
    """The result of the histories of one process."""

    seed: int
    histories: int = 0
    steps: int = 0
    met: Counter[str] = field(default_factory=Counter)
    broken: History | None = None
    how: str = ""


def run(number: int, count: int) -> Shard:
    """Play `count` histories drawn with a seed; stops at the first that violates a guarantee."""
    listen()
    shard = Shard(number)
    last: list[History] = []

    @seed(number)
    @settings(
        max_examples=count,
        database=None,
        deadline=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
        report_multiple_bugs=False,
        print_blob=False,
    )
    @given(histories)
    def play_one(history: History) -> None:
        last[:] = [history]
        shard.histories += 1
        shard.steps += len(history)
        play(history, shard.met)

    try:
        play_one()
    except Exception:
        shard.broken, shard.how = last[0], traceback.format_exc(limit=-4)
    return shard


def replay(history: History) -> int:
    """Repeat one history, and print it."""
    listen()
    print(described(history), flush=True)
    try:
        play(history, Counter())
    except Exception:
        traceback.print_exc()
        return 1
    print("no violation")
    return 0


def report(shards: list[Shard], seconds: float) -> int:
    """Print what happened; the exit status."""
    met: Counter[str] = Counter()
    for shard in shards:
        met.update(shard.met)
    played = sum(shard.histories for shard in shards)
    broken = [shard for shard in shards if shard.broken is not None]
    for what, times in sorted(met.items()):
        print(f"{times:>10}  {what}")
    for shard in broken:
        assert shard.broken is not None
        print(f"\nseed {shard.seed}: a guarantee was violated by\n{described(shard.broken)}")
        print(f"{shard.how}\nrepeat it: make sim REPLAY={encode(shard.broken)}")
    never = missing(met) if played >= ENOUGH and not broken else []
    if never:
        print(f"\nnever happened, but must: {', '.join(never)}")
    print(
        f"\n{played} histories, {sum(s.steps for s in shards)} steps, {len(broken)} violations, "
        f"seeds {', '.join(str(s.seed) for s in shards)}, {played / seconds:.0f} histories/s, "
        f"{seconds:.0f} s"
    )
    return 1 if broken or never else 0


def _history(word: str) -> History:
    try:
        return decode(word)
    except (ValueError, TypeError, zlib.error):
        raise argparse.ArgumentTypeError("this is not a history that was printed here") from None


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of histories")
    return int(text)


def main() -> int:
    """Read the arguments, distribute the work, report."""
    parser = argparse.ArgumentParser(prog="make sim", description=__doc__)
    parser.add_argument("--histories", type=_count, default=10_000)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--seed", type=int, default=None, help="of the first shard")
    parser.add_argument("--replay", type=_history, help="a history as a failure printed it")
    options = parser.parse_args()
    if options.replay is not None:
        return replay(options.replay)
    logging.getLogger("hypothesis").setLevel(logging.ERROR)
    first = options.seed if options.seed is not None else random.SystemRandom().randrange(10**6)
    numbers = [first + n for n in range(options.processes)]
    share = -(-options.histories // options.processes)
    print(f"{options.histories} histories with seeds {numbers}", flush=True)
    started = time.monotonic()
    with ProcessPoolExecutor(options.processes) as pool:
        shards = list(pool.map(run, numbers, [share] * len(numbers)))
    return report(shards, time.monotonic() - started)


if __name__ == "__main__":
    sys.exit(main())
