"""What stands around a notebook: its parameters, figures, results, execution, and README tables.

Begin with `experiment`, whose `start` is the first call of every notebook; `run` executes notebooks
from the command line.
"""
