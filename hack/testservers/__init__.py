"""Real servers that the tests talk to, built from pinned sources and cached like the cluster's."""
