"""`python -m bonbon`."""

from bonbon.cli import main

main()
