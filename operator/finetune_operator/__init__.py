"""The operator: reconciles FineTuneJobs, ModelEndpoints and the workspaces of namespaces.

`main` starts a process, `engine` carries events to reconcile functions and decisions back to the
API server, `controllers` is the table between the two, and `decision` is their common language.
`jobs`, `endpoints` and `workspaces` decide; `planner` and `resources` help them to.
"""
