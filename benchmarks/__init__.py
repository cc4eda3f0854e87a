"""Measurements of the program: how good its results are, on generated scenes and on anybody's own photos."""
