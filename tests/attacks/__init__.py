"""Attacks on the verifier, run again by `python -m tests.attacks`: hostile hosts, folders, files.

Not collected by pytest and not shipped: a run takes many minutes. Each attack is a row of tried
and held in a results file; what did not hold is kept with its input, cut.
"""
