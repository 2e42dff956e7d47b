"""The entry of the command `maskline`."""

from runtime.search_path import arrange


def main(argv: list[str] | None = None) -> int:
    """Run a command line and return its exit code; without arguments, this process's own, and exit."""
    if argv is None:
        arrange()
    # Only now: what these import must not be found in the user's directories.
    from console.commands import dispatch  # noqa: PLC0415
    from runtime.process import cli  # noqa: PLC0415

    if argv is None:
        cli(dispatch)
    return dispatch(argv)
