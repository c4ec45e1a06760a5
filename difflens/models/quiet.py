"""Loading a model says nothing of its own: what goes wrong is told afterwards, in one line."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

LOGGERS = ("diffusers", "transformers", "huggingface_hub")


@contextmanager
def quietly() -> Iterator[None]:
    """In the block the libraries that models are loaded with log nothing, warn of nothing and show no progress."""
    # Imported by need: what measures images has no room for them beside its networks.
    import diffusers
    import transformers

    loggers = [logging.getLogger(name) for name in LOGGERS]
    levels = [logger.level for logger in loggers]
    bars = (diffusers.utils.logging, transformers.utils.logging)
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    for bar in bars:
        bar.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        for bar in bars:
            bar.enable_progress_bar()
