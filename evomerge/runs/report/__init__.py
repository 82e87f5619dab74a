"""The HTML report of a run: one page without scripts or references to other pages."""
