"""`python -m codeseg …` and `torchrun -m codeseg …`: the command line."""

from codeseg.stages.cli import main

if __name__ == "__main__":
    main()
