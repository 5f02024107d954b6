"""`python -m benchmarks.others`; the work is in `run`, which the processes of single models import."""

from benchmarks.others.run import main

if __name__ == "__main__":
    main()
