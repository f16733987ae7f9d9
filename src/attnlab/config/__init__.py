"""
From words on a command line to a checked configuration, as plain data: the room that knows Hydra.

overrides: words as Hydra's grammar reads them -> compose: one configuration of all groups -> check: its fields, types
and ranges against the classes that it names (seams: whether each is of its group's base) and its combinations
(constraints, and what each part says of itself) -> engine: parts built of it, or jobs handed to launchers. identity:
which run it is.
"""


class UsageError(Exception):
    """Something that a user can mend: the message says what must hold, what was given and what to do."""
