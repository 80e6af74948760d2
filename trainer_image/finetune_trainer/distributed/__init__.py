"""The ranks of a training pod: how they start, meet, wait for each other, and prove that they run.

`launcher` starts them and comes first. Each rank then reports to the first process of its pod
(`rank_reporter`) and to the other ranks (`heartbeat`); the first process watches the reports
(`watchdog`).
"""
