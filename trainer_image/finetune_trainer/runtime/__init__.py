"""What every stage process has: errors, SIGTERM, logs, telemetry, and files that survive a crash.

It knows nothing of models or data. Read `stage` first: it runs a stage and writes its result.
"""
