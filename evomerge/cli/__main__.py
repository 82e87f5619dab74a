"""`python -m evomerge.cli`: the same as the installed command."""

from evomerge.cli.process import process

process()
