"""`python -m crepe`: the command, where a launcher asks for a module."""

import sys

from crepe.cli.main import main

sys.exit(main())
