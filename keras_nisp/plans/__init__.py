"""Plans: which channels are removed or merged.

Importance and a budget (`budget.py`, `solver.py`, `planning.py`) make a `Plan` (`plan.py`). It is
plain data: written to files, drawn as a report, fitted to a traced model.
"""
