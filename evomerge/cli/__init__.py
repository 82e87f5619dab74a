"""The command line, one file per verb: arguments and printing, nothing else."""
