"""A process of `harness.measure`: builds one family of cases and times them when asked."""

from __future__ import annotations

import os
import sys

import cases
import harness

if __name__ == "__main__":
    answers = os.dup(1)
    os.dup2(2, 1)  # what libraries print must not mix with the answers
    sys.stdout = os.fdopen(answers, "w")
    harness.serve(getattr(cases, sys.argv[1])())
