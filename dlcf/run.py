"""``python -m dlcf.run``: the same as ``dlcf run``."""

from dlcf.notebook.run import main

if __name__ == "__main__":
    raise SystemExit(main())
