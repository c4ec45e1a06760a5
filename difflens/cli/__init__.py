"""The command line: the help text, which configurations are let in, sweeps, and how errors end the program."""
