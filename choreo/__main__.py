"""`python -m choreo` is the `choreo` command."""

from choreo.cli import main

if __name__ == "__main__":
    main()
