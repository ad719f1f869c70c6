"""Pruning in one call (`prune`) or while a model trains (`NISPPruner`), and what each group of
channels is worth (`sensitivity`)."""
