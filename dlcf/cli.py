"""The command line: ``dlcf COMMAND ...``; also ``python -m dlcf`` and ``torchrun -m dlcf``."""

from __future__ import annotations

import argparse
import io
import logging
import sys
from collections.abc import Sequence
from importlib import import_module

from dlcf import __version__

# Command -> module whose `main(arguments)` does it, imported when it is chosen; and what it does.
COMMANDS = {
    "run": ("dlcf.notebook.run", "execute notebooks and write their figures and results"),
    "train": ("dlcf.studies.train", "fit one model and save it; with torchrun, on many processes"),
    "compare": ("dlcf.studies.compare", "compare models over splits and seeds, with intervals"),
    "tune": ("dlcf.studies.tune", "search or try hyper-parameters on validation data"),
    "prequential": ("dlcf.studies.prequential", "predict ratings in the order they were given"),
    "ablation": ("dlcf.studies.ablation", "measure what each part of deepcf-plus contributes"),
    "replication": ("dlcf.paper.replication", "search for what gives the paper's six numbers"),
    "related": ("dlcf.paper.related", "put what the related systems claim to their own tests"),
    "components": ("dlcf.paper.components", "what each part of the paper's network is worth"),
    "prose": ("dlcf.notebook.prose", "refresh the numbers in the text of notebooks and README"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Hand the arguments behind the command to it; returns the exit status.

    An error is one line on stderr, and status 1; Ctrl-C too, and 130.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # not every terminal has every character
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(
        prog="dlcf",
        description="Deep collaborative filtering on MovieLens.",
        epilog="dlcf COMMAND --help lists the options of a command. "
        "python -X dev -m dlcf COMMAND shows where in the code an error arose.",
    )
    parser.add_argument("--version", action="version", version=f"dlcf {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", dest="command", required=True)
    for name, (_, summary) in COMMANDS.items():
        commands.add_parser(name, help=summary, add_help=False)
    command = parser.parse_args(arguments[:1]).command
    module, _ = COMMANDS[command]
    try:
        return import_module(module).main(arguments[1:]) or 0
    except KeyboardInterrupt:
        logging.disable()  # of what was cut off in the middle
        problem = "interrupted; the same command goes on from there"
        print(f"\ndlcf {command}: {problem}", file=sys.stderr)
        return 130
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        if sys.flags.dev_mode:
            raise
        missing = isinstance(error, ModuleNotFoundError)
        remedy = '; pip install "dlcf[notebooks]"' if missing else ""
        print(f"dlcf {command}: error: {error}{remedy}", file=sys.stderr)
        return 1
