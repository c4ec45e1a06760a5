"""Colours that people with any colour vision can tell apart (Okabe and Ito, 2008)."""

from collections.abc import Sequence

OKABE_ITO = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
"""Shapes that repeat what colours say, for print without colour."""

INK = "#1f2933"
FAINT = "#8a94a0"
EDITED = "#D55E00"
UNTOUCHED = "#c9ced6"


def class_styles(classes: Sequence[str]) -> dict[str, dict[str, str]]:
    """Colour and marker per class, the same in every figure of a report."""
    styles = zip(classes, range(len(classes)), strict=True)
    return {name: {"color": OKABE_ITO[i % 7], "marker": MARKERS[i % 7]} for name, i in styles}
