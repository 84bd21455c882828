"""Attacks on run directories, requests and the file system, with the same bar for all: `python -m attack --help`.

An attack is a module of this package with `cases(seed, count)`, which yields `driver.Case`s, and `FULL`, the count of
a whole attack. `LIMIT` [s] is what one case may take (30 by default).
"""
