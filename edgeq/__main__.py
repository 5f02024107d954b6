"""`python -m edgeq` is the command `edgeq`."""

from edgeq.cli import main

if __name__ == "__main__":
    main()
