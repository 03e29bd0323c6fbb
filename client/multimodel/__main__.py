"""Runs the command: `multimodel`, or `python -m multimodel`."""

from multimodel.cli.application import app


def main() -> None:
    """Run the `multimodel` command."""
    app(prog_name="multimodel")


if __name__ == "__main__":
    main()
