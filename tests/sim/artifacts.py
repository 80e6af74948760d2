"""The artifacts in the workspace, and the janitor that removes them.

It has the janitor's rules and no others: what its list does not have is condemned by one pass, and
removed by a later one after the grace period, which a reference in between begins again.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

from finetune_operator.names import job_entry
from finetune_operator.resources.janitor import MARGIN_SECONDS, parse_keep_list

from tests.sim.clock import Clock
from tests.sim.server import ApiServer


class Artifacts:
    """The folder `artifacts/` of a workspace."""

    def __init__(self, server: ApiServer, clock: Clock, met: Callable[[str], None]) -> None:
        self._server = server
        self._clock = clock
        self._met = met
        self._created: dict[str, float] = {}
        self._condemned: dict[str, float] = {}
        self.removing: Callable[[str], None] = lambda _: None
        """Called with a folder before it is removed."""

    @property
    def folders(self) -> Collection[str]:
        """The folders that exist, as `artifacts/<job>-<uid8>`, in the order of their creation."""
        return self._created.keys()

    def add(self, folder: str) -> None:
        """An export has written a folder."""
        self._created.setdefault(folder, self._clock.now)

    def clean(self, janitor_uid: str) -> None:
        """One pass of a janitor over the folders."""
        jobs = [job for job in self._server.list("Job") if job["metadata"]["uid"] == janitor_uid]
        if not jobs:
            return
        self._met("janitor ran")
        keep, now = parse_keep_list(jobs[0]), self._clock.now
        for folder, created in list(self._created.items()):
            if {folder, job_entry(folder[-8:])} & keep:
                self._condemned.pop(folder, None)
                continue
            if f"+{folder}" in keep:
                self._condemned.pop(folder, None)
            if now - min(self._condemned.setdefault(folder, now), now) < MARGIN_SECONDS:
                continue
            if now - created >= MARGIN_SECONDS:
                self._met("artifact removed")
                self.removing(folder)
                del self._created[folder], self._condemned[folder]
