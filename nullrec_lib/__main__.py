"""`python -m nullrec_lib` is `nullrec`: launchers of several processes start modules."""

from nullrec_lib.cli import app

if __name__ == "__main__":
    app()
