"""The engine: carries events from the API server to reconcile functions, and decisions back.

The path of one event, module by module:

`watch`             kopf lists and watches the kinds; each event goes to the event handlers
`relist`            fills the cache before the first reconcile, and repairs it after missed events
`event_handlers`    put the object into the cache and enqueue the keys that it wakes
`cache`             objects by kind, namespace and name: the View of a reconcile function
`workqueue`         keys that wait for a worker, with delays and back-off
`reconciler`        key -> reconcile function -> Decision -> writes -> requeue
`writer`            one fenced status write, then creates, applies and deletes; answers to the cache
`diff`              what of an object differs: merge-patch, subset, same child
`event_recorder`    the Kubernetes events of a decision
`http_poller`       the requests of a decision to pods, and its queries for events; a response
                    enqueues the key again

What they share:

`controller`        puts these parts together in the process that leads
`crd_check`         whether the installed CRDs have what this version writes
`kube_client`       the connection to the API server; `kinds` has the addresses of its objects
`leader_election`   which process leads, by a Lease
`server_clock`      what time it is at the API server
`health`, `metrics`, `logs`   what kubelet, Prometheus and people can see of the process

The engine imports `decision`, `manifest`, `settings` and `finetune_api`, and nothing of the code
that decides.
"""
