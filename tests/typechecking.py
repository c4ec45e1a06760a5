"""The run-time type checker of the tests: beartype with integers accepted where numbers are, as type checkers do."""

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))
