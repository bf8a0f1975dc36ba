"""``python -m dlcf.run``: the same as ``dlcf run``."""

import sys

from dlcf.cli import main

if __name__ == "__main__":
    raise SystemExit(main(["run", *sys.argv[1:]]))
