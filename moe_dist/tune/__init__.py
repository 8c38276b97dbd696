"""Searches for hyper-parameters: one study per expert, all in one Ray Tune run, or in this process.

config.py and space.py are what a job says; study.py asks and is told, halving.py stops, budget.py decides whose turn it
is, journal.py remembers; search.py puts them together, and ray_search.py runs it on Ray Tune; runner.py trains what was
asked for, results.py says what came of it.
"""
