"""One run: built from its configuration, trained, recorded, loaded again. All of it takes plain arguments.

build: a resolved configuration -> its parts (data module, model, task), and another run's weights as the start. run:
claims a run's directory, trains, evaluates. record: run.json, written and read, and the code that a run's numbers come
from. views: samples, pictures, W&B. trained: a run's model and data again; inspected: what its heads do; searched: what
it finds for a phrase. imported, exported: models from and for other libraries; clients: what these need beside them.
"""
