"""`python -m tegu`."""

import sys

from tegu.cli import main

sys.exit(main())
