"""A process of `harness.measure`: builds one family of cases and times them when asked."""

from __future__ import annotations

import importlib
import json
import os
import sys
import warnings

import harness

if __name__ == "__main__":
    answers = os.dup(1)
    os.dup2(2, 1)  # what libraries print must not mix with the answers
    sys.stdout = os.fdopen(answers, "w")
    warnings.simplefilter("ignore")  # deprecations of the peers' own calls
    family, setting = sys.argv[1], harness.Setting(**json.loads(sys.argv[2]))
    module, function = family.split(":")
    harness.serve(getattr(importlib.import_module(module), function)(setting), function, setting.cols)
