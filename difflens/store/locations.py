"""Where files named in a configuration lie: on the disk, or shipped inside the package."""

from pathlib import Path

PACKAGE = "package:"


def place(path: str) -> Path:
    """The path itself, or the place inside the installed package for `package:miniature/weights/…`; it need not exist."""
    inside = path.startswith(PACKAGE)
    return Path(__file__).parents[1] / path.removeprefix(PACKAGE) if inside else Path(path).expanduser()


def locate(path: str) -> Path:
    """The same, of something that is there (ValueError: there is nothing; the message says where it was looked for)."""
    found = place(path)
    if not found.exists():
        raise ValueError(f"nothing at {str(found)!r} (from {path!r}); put the files there or change the path.")
    return found
