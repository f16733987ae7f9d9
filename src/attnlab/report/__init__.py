"""Views of an analysis: the page, the figures, the live server.

`page` writes the page of a study: `sections` prepares what the macros of templates/ show, `page_data` and `run_data` what
its scripts draw. `figures` draws for a paper, and the forest and the grid for the page, too. `live` shows pages of studies
that run. `attention_page` shows what heads attend to; `document` is what all of them are written with.
"""
