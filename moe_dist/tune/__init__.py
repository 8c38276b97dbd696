"""Searches for hyper-parameters: one study per expert or one of the method, in one run of Ray Tune or in this process.

settings/tune.py is what a job may set and requirements.py what is refused. studies.py says which studies a job has,
run.py runs them. search.py runs several studies: study.py suggests trials, budget.py chooses the next study, halving.py
stops trials early, journal.py keeps everything on disk, and ray_search.py runs a search on Ray Tune. expert_trials.py
and method_trials.py train trials in a worker, which backend.py describes; results.py writes what was found.
"""
