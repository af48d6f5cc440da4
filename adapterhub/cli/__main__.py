"""`python -m adapterhub.cli`: the command line where no script of that name is at hand."""

from adapterhub.cli.main import main

main()
