"""``python -m pumice`` is the command ``pumice``."""

from __future__ import annotations

import sys

from pumice.cli import main

if __name__ == "__main__":
    sys.exit(main())
