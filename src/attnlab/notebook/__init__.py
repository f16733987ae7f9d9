"""What a notebook holds, and shows as what a cell ends with: of nothing here a command makes use.

`study` has a study with its frames, comparison and figures; `run` a trained run that writes, translates and is looked
into.
"""
