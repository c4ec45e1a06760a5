"""Where files named in a configuration lie: on the disk, or shipped inside the package."""

from pathlib import Path

PACKAGE = "package:"


def locate(path: str) -> Path:
    """The path itself, or the place inside the installed package for `package:miniature/weights/…`.

    Raises:
        ValueError: there is nothing; the message says where it was looked for.
    """
    found = (
        Path(__file__).parents[1] / path.removeprefix(PACKAGE) if path.startswith(PACKAGE) else Path(path).expanduser()
    )
    if not found.exists():
        raise ValueError(f"nothing at {str(found)!r} (from {path!r}); put the files there or change the path.")
    return found
