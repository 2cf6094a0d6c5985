"""`python -m lwqc`."""

from lwqc.cli import main

main()
