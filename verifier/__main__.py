"""`python -m verifier` is the same as `verifier`."""

from verifier.cli import main

if __name__ == "__main__":
    main()
