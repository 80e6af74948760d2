"""What the evaluate stage computes, and the merged weights that it shares with export.

- merge: the base model and the tuned model as one set of weights
- held_out_loss: the objective's loss of both models on the held-out data
- prompts: which held-out prompts the models answer
- model_measurement: forward passes and answers of one model after the other
- comparison: the metrics of both models, and whether the gate passes
- report: everything measured, as a file in the workspace
- parity_probe: the prompt and answer with which a server is checked
"""
