"""The embedded world: drawn faces with exactly known factors, and the recipes of the small real models trained on them.

The faces are proxies drawn to calibrate methods; they are no statement about people.
"""
