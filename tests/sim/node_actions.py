"""What happens to nodes and quotas."""

from __future__ import annotations

from tests.sim.clock import Clock
from tests.sim.controllers import JobController
from tests.sim.invariants import Invariants
from tests.sim.nodes import NODES, Nodes
from tests.sim.trainer import Trainer


class NodeActions:
    """Actions of a history on the nodes, and on the quota of the namespace."""

    clock: Clock
    invariants: Invariants
    jobs: JobController
    nodes: Nodes
    trainer: Trainer

    def wait(self, seconds: float) -> None:
        """Let time pass."""
        raise NotImplementedError

    # Quotas

    def do_lower_quota(self, which: int, seconds: float) -> bool:
        """The namespace may have no pod, or one, for some time."""
        self.jobs.quota = which % 2
        self.clock.after(4 * seconds, setattr, self.jobs, "quota", None)
        return True

    # Nodes

    def do_cut_node(self, which: int, _seconds: float) -> bool:
        """A node cannot reach the API server, or no host at all; its pods keep running."""
        self.nodes.cut(NODES[which % len(NODES)], wholly=which // len(NODES) % 2 == 1)
        return True

    def do_cut_gang(self, which: int, _seconds: float) -> bool:
        """A switch fails: no node of a gang reaches the API server, and its ranks keep training."""
        gangs = [gang for gang in self.trainer.gangs.values() if gang.can_publish]
        if not gangs:
            return False
        for rank in gangs[which % len(gangs)].ranks.values():
            self.nodes.cut(rank.node)
        return True

    def do_power_off(self, which: int, _seconds: float) -> bool:
        """A node loses its power."""
        self.nodes.power_off(NODES[which % len(NODES)])
        return True

    def do_node_returns(self, _which: int, _seconds: float) -> bool:
        """Every node is back."""
        gone = [name for name, node in self.nodes.nodes.items() if not node.reachable]
        for name in gone:
            self.return_node(name)
        return bool(gone)

    def return_node(self, name: str) -> None:
        """The node is back, and reports what its pods did."""
        node = self.nodes.nodes[name]
        if node.powered and not node.linked and not node.evicted:
            self.invariants.own_faults += 1  # its ranks lost their peers for an unknown reason
        self.nodes.bring_back(name)

    def do_fill_nodes(self, which: int, seconds: float) -> bool:
        """A gang that starts now gets one node, and waits for another."""
        self.nodes.fill(NODES[which % len(NODES)], 6 * seconds)
        self.wait(5 * seconds)
        return True

    def do_drain(self, which: int, seconds: float) -> bool:
        """kubectl drain of a node."""
        return self.nodes.drain(NODES[which % len(NODES)], seconds) > 0
