"""`python -m smdiff`."""

import sys

from smdiff.cli import main

sys.exit(main())
