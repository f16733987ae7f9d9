"""Figures for a paper, by matplotlib, in the page's words and colours."""
