"""Runs the command line as `python -m bonbon`."""

from bonbon.cli.main import main

main()
