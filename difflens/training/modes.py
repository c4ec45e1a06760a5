"""How a tracking service may be used; apart from the loggers, so that checking a setting imports no Lightning."""

MODES = ("online", "offline", "disabled")
