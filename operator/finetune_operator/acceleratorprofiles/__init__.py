"""AcceleratorProfile: its status. Start with plan.py, use.py defines what counts."""
