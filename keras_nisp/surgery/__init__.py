"""Models of other widths, and the proof that they are right.

`rebuild` and `widen` make them; `verify` compares them with the oracle (`oracle.py`): the original
without what was removed.
"""
