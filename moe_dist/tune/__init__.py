"""Searches for hyper-parameters: one study per expert, all in one Ray Tune run, or in this process; or one of a method.

config.py and space.py are what a job says, refusals.py what it may not say; studies.py is what it searches, run.py how.
study.py asks and is told, halving.py stops, budget.py decides whose turn it is, journal.py remembers; search.py puts
them together, and ray_search.py runs it on Ray Tune. runner.py and whole_method.py train what was asked for,
backends.py opens them in a worker; results.py says what came of it.
"""
