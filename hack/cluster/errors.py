"""The errors that a user of the local cluster may see: one line with what, where, what to do."""

from __future__ import annotations


class ClusterError(Exception):
    """Something failed that the message explains; the command line exits with `exit_code`."""

    exit_code = 1


class NotPossibleHere(ClusterError):
    """This machine has neither root nor Docker with kind, so no cluster can run on it."""

    exit_code = 3
