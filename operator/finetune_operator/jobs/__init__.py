"""FineTuneJob: from what is seen (observe) to what is done next (plan), a file per stage.

Everything here is pure: the cluster comes in through a View and goes out as a Decision.
"""
