"""Runs the command line as `python -m bonbon`."""

import os
import sys

# Python searches the working directory first here. A user's own `service.py` or `trainer/` there must not be taken for
# the package of that name.
if sys.path and os.path.realpath(sys.path[0]) == os.getcwd():
    sys.path.append(sys.path.pop(0))

from bonbon.cli.main import main

main()
