"""``python -m dlcf COMMAND ...``: the same as ``dlcf COMMAND ...``."""

from dlcf.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
