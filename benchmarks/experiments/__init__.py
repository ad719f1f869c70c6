"""The accuracy experiments: `run(lab, rows, seed)` and `tables(results)` in each."""
