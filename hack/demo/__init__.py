"""The demo: a real small model and real data, fine-tuned and served on the local cluster."""
