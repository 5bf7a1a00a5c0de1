"""``python -m lit_llada`` is ``lit-llada``."""

import sys

from lit_llada.cli.main import main

sys.exit(main())
