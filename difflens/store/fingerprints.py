"""What made an artifact, as values: their canonical form, fingerprint and differences."""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

from difflens.store.errors import ArtifactMismatchError

ABSENT = "(absent)"


def canonical(value: Any, where: str = "") -> Any:
    """The value in plain JSON types; 1.0 and 1 are the same value, tuples are lists, keys are sorted when written.

    Raises:
        ValueError: a value is NaN or infinite, of a type that JSON does not have, or a key is not a string.
    """
    match value:
        case None | bool() | int() | str():
            return value
        case float() if not math.isfinite(value):
            raise ValueError(f"spec value {where or 'spec'} is {value}: only finite numbers identify an artifact.")
        case float():
            # From 2⁵³ on a float stands for several whole numbers, so it stays one.
            return int(value) if value.is_integer() and abs(value) < 2**53 else value
        case Mapping():
            for key in value:
                # JSON writes 3 and "3" alike: two specs would share a fingerprint.
                if not isinstance(key, str):
                    raise ValueError(f"spec key {key!r} under {where or 'spec'} is no string; write {str(key)!r}.")
            return {key: canonical(value[key], f"{where}.{key}".lstrip(".")) for key in value}
        case list() | tuple():
            return [canonical(item, f"{where}.{i}".lstrip(".")) for i, item in enumerate(value)]
    raise ValueError(
        f"spec value {where or 'spec'} = {value!r} is a {type(value).__name__}; "
        "give text, numbers, booleans, null, or lists and mappings of them."
    )


def fingerprint(spec: Mapping[str, Any]) -> str:
    """First 16 hexadecimal digits of the SHA-256 of the spec's canonical JSON."""
    # All that changes bytes but no value is fixed here, for folders are found again by this text's hash.
    text = json.dumps(canonical(spec), sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def shown(value: Any) -> str:
    """A value as text of at most 60 characters."""
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 60 else text[:59] + "…"


def differences(a: Any, b: Any, where: str) -> Iterator[str]:
    """Lines for every place where two canonical values differ."""
    if isinstance(a, dict) and isinstance(b, dict):
        for key in sorted(a.keys() | b.keys()):
            yield from differences(a.get(key, ABSENT), b.get(key, ABSENT), f"{where}.{key}".lstrip("."))
    elif isinstance(a, list) and isinstance(b, list) and len(a) == len(b) > 8:
        # A long list is a grid or a set of ids: its first difference says enough.
        lines = [line for i, (x, y) in enumerate(zip(a, b, strict=True)) for line in differences(x, y, f"{where}.{i}")]
        if lines:
            yield lines[0] + (f" (and {len(lines) - 1} more in {where})" if len(lines) > 1 else "")
    elif isinstance(a, list) and isinstance(b, list) and len(a) != len(b) and max(len(a), len(b)) > 8:
        yield f"{where}: {len(a)} values != {len(b)} values"
    # As text, since Python holds True and 1 for equal, and the fingerprint does not.
    elif json.dumps(a, sort_keys=True) != json.dumps(b, sort_keys=True):
        yield f"{where}: {shown(a)} != {shown(b)}"


def describe_difference(spec_a: Mapping[str, Any], spec_b: Mapping[str, Any]) -> list[str]:
    """Differences of two specs by dotted path, such as `site.module: mid_block != up_blocks.0`; empty if equal."""
    return list(differences(canonical(spec_a), canonical(spec_b), ""))


def require_equal(found: Mapping[str, Any], expected: Mapping[str, Any], what: str) -> None:
    """Check that an artifact was made for what is asked for.

    Raises:
        ArtifactMismatchError: it was not; the message lists the differences, the artifact's value first.
    """
    lines = describe_difference(found, expected)
    if lines:
        more = f" and {len(lines) - 4} more" if len(lines) > 4 else ""
        raise ArtifactMismatchError(
            f"{what} was made for something else ({'; '.join(lines[:4])}{more}); "
            "give the values it was made with, or make it again."
        )
