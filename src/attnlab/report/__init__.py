"""Views of an analysis: the page, the figures, the live server.

`page` writes the page of a study out of the macros of templates/; `page_data` and `run_data` make what they draw.
`figures` draws for a paper, and the forest and the grid for the page, too. `live` shows pages of studies that run.
`attention` shows what heads attend to; `document` is what all of them are written with. `wandb_report` is for W&B.
"""
