"""Container images for the local cluster, made without a container engine."""
