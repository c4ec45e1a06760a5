"""Composition roots: each task reads the config, builds objects and runs one stage."""
