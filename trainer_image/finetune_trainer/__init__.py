"""The stages of a fine-tuning job, one script each, and the packages that they use.

The stages are prepare, train, evaluate and export; janitor cleans a workspace. A stage reads one
file (run.json), works inside the folders that it names, reports its progress over HTTP and ends
with a StageResult. It depends on neither Kubernetes nor the operator: both sides share
`finetune_api` alone. Every module that a stage script imports at its top imports the heavy
libraries only where it computes with them, so that a pod answers its probes within a second.
"""

__version__ = "0.1.0"
