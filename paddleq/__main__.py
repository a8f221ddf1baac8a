"""``python -m paddleq``, the same as the command ``paddleq``."""

import sys

from .cli.main import main

sys.exit(main())
