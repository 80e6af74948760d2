"""One file per kind of child: what the cluster is asked to create. Pure: data in, manifest out."""
