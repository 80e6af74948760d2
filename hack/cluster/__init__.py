"""The local cluster: a real two-node Kubernetes for development, the demo and the end-to-end tests.

There are two engines behind one command line (`python3 -m hack.cluster`): `nodes` runs the real
binaries (etcd, kube-apiserver, kubelet, containerd, ...) in namespaces of this machine and needs
root; `kind` is used where a Docker engine and kind are installed. Only the standard library is
imported, so that all of it runs before any virtual environment exists.
"""
