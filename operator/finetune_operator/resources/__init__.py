"""One file per kind of child: the manifest that the operator creates. Pure: data in, dict out."""
