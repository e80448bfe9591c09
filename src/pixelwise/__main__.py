"""`python -m pixelwise`, the command line where no script is on the path."""

from pixelwise.cli import main

if __name__ == "__main__":
    main()
