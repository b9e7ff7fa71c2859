"""``python -m kwsiem`` is the command ``kwsiem``."""

from kwsiem.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
