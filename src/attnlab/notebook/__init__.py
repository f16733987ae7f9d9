"""What a notebook works with, and shows where a cell ends with it; no command uses it.

`study` has a study with its frames, comparison and figures; `run` a trained run that writes, translates and is looked
into.
"""
