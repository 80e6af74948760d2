"""Training itself: the process of one rank, its optimizer steps, and what is measured of them.

Read `worker` first, the recipe of a training process, and then `loop`, its optimizer steps.
"""
