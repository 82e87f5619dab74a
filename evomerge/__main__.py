"""`python -m evomerge`: the same as the installed command."""

from evomerge.cli.main import process

process()
