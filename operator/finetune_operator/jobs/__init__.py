"""FineTuneJob: from what exists (observe) to what is done next (plan), a module for each stage.

Everything here is pure: the cluster comes in through a View and goes out as a Decision.
"""
