"""A study: planned, launched on a laptop or a cluster, followed, run again where runs were lost.

study_file: a study.yaml, checked -> plan: cells x seeds, and where their runs stand -> launch: what is not over, by
workers on this machine or the jobs of a cluster (Slurm), until nothing is left. monitor, watching: what it looks like
meanwhile. jobs: one run, a multirun, or a search of settings by Optuna in each cell. cards: its runs for other
libraries, each with a model card.
"""
