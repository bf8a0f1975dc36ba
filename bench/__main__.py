"""``python -m bench [SECTION ...]``; see :mod:`bench.measure`."""

from bench.measure import main

if __name__ == "__main__":
    raise SystemExit(main())
