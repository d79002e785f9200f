"""The command line of the embedded way."""

import typer

app = typer.Typer(no_args_is_help=True)


def demo() -> None:
    """Start everything, train `flows/digits`, and say where to look."""
