"""`python -m meshnode` is `meshnode`."""

from meshnode.cli import main

main()
