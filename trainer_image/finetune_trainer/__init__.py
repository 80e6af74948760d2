"""The stages of a fine-tuning job, one script each, and what they share.

A stage reads one file (run.json), works inside the folders that it names, tells its progress
over HTTP and ends with a StageResult. It knows nothing of Kubernetes and nothing of the
operator: the two meet in `finetune_api`. Every module here imports the heavy libraries only
where it computes with them, so that a pod answers its probes within a second of its start.
"""

__version__ = "0.1.0"
