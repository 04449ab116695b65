"""`python -m miniserve` is the `miniserve` command."""

from miniserve.cli import main

main()
