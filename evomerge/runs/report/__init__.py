"""The report of a run: one self-contained HTML page, and its figures as files.

`contents` reads the run directory, one module per section computes what the section shows, `figures` draws it, and
`html` fills the template. The page makes no requests; its scripts and figures are inside it.
"""
