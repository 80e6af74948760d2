"""What the evaluate stage computes, and the merged weights that it shares with export.

- merge: the base model and the tuned model as one set of weights
- held_out_loss: the objective's loss of both models on the held-out data
- metric_choice: which metrics there are, by the job or by the held-out answers
- prompts: which held-out prompts the models answer
- baselines: the same prompts with a system turn or examples, for the base model
- requirements: what prepare checks of all this, before training
- model_measurement: forward passes and answers of one model after the other
- answer_metrics: scores of answers, classes and fields
- comparison: the metrics of all, with intervals of the differences
- gate: whether the rules of the gate hold
- report: everything measured, as a file in the workspace
- parity_probe: the prompt and answer with which a server is checked
"""
