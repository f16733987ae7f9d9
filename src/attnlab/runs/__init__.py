"""One run: built from its configuration, trained, recorded, loaded again. All of it takes plain arguments.

build: a resolved configuration -> its parts (data module, model, task), and another run's weights as the start. run:
claims a run's directory, trains, evaluates. trial, tuning: its first steps alone, for what they take and for what they
could be. record: run.json, written and read, and the code that a run's numbers come from. views: samples, pictures,
W&B. trained: a run's model and data again; inspected: what its heads do; searched: what it finds for a phrase.
imported, exported: models from and for other libraries; clients: what these need beside them.
"""
