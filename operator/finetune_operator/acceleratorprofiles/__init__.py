"""AcceleratorProfile: its status. Start with plan.py, use.py says what counts."""
