"""Two real models run from their compact files: a language model that is here, a sentence encoder if it can be fetched.

``make demo`` runs this. Files and plots go to ``$PUMICE_DEMO_OUT`` (``build/demo``), the encoder is kept in
``$PUMICE_CACHE`` (``~/.cache/pumice``). Without a network the encoder is left out, which ``PUMICE_DEMO_STRICT=1`` turns
into exit code 3. ``PUMICE_DEMO_WINDOWS=8`` scores that many windows of text with the language model, not all.
"""

from __future__ import annotations

import os
import sys

import demo_austen
import demo_minilm
from demo_shared import OUT


def main() -> int:
    OUT.mkdir(parents=True, exist_ok=True)
    demo_austen.run()
    ran = demo_minilm.run()
    return 3 if not ran and os.environ.get("PUMICE_DEMO_STRICT") == "1" else 0


if __name__ == "__main__":
    sys.exit(main())
