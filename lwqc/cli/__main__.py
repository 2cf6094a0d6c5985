"""`python -m lwqc.cli`."""

from lwqc.cli import main

main()
