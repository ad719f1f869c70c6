"""C-SGD: clusters of filters that training makes identical.

`plan_merging` clusters them (`merging.py`, `clustering.py`), an optimizer pulls them together
(`optimizers.py`, `cluster_mean.py`), `deviation` and `CentripetalMonitor` watch.
"""
