"""NISP's claims, held against the rows of the experiment `importances`."""

import numpy as np

from experiments.tables import markdown

RIVALS = ("L1", "LayerByLayer", "Random")


def differences(rows: list[dict], rival: str, ratio: float, stage: str) -> np.ndarray:
    """NISP's accuracy minus a rival's, seed by seed.

    Args:
        rows: of one task.
        rival: name of the other importance.
        ratio: share of channels removed.
        stage: "one_shot", "recalibrated", "compensated", "epoch 1" or "last".
    """

    def value(row):
        if stage in ("epoch 1", "last"):
            return row["curve"][0 if stage == "epoch 1" else -1] if "curve" in row else None
        return row.get(stage)

    found = {
        (row["importance"], row["seed"]): value(row) for row in rows if row.get("ratio") == ratio
    }
    pairs = [
        (found[name, seed], found.get((rival, seed)))
        for name, seed in found
        if name == "NISP" and found[name, seed] is not None
    ]
    return np.array([ours - theirs for ours, theirs in pairs if theirs is not None])


def mean_and_error(values: np.ndarray) -> tuple[float, float]:
    """Mean and standard error over seeds; the error of one seed is not known, and 0 here."""
    error = values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else 0.0
    return float(values.mean()), float(error)


def verdict(values: np.ndarray) -> str:
    """In points; "level" if the mean lies within one standard error over seeds."""
    if not len(values):
        return ""
    mean, error = mean_and_error(100 * values)
    if len(values) == 1:
        return f"{mean:+.1f} (1 seed)"
    return f"{mean:+.1f} ± {error:.1f}" + ("" if abs(mean) > error else ", level")


def table(results: dict[str, list[dict]], stage: str, ratio: float | None = None) -> str:
    """NISP minus its rivals in points, by task.

    Args:
        results: rows of each task.
        stage: as for `differences`.
        ratio: share of channels; without it, that at which the task is fine-tuned.
    """
    lines = []
    for task, rows in results.items():
        chosen = _tuned(rows) if ratio is None else ratio
        cells = [verdict(differences(rows, rival, chosen, stage)) for rival in RIVALS]
        word = {True: "holds", False: "does not hold", None: ""}[holds(rows, stage, ratio)]
        lines.append([task, f"{100 * chosen:g} %", *cells, word])
    return markdown(["", "removed", *(f"over {rival}" for rival in RIVALS), "ahead of all"], lines)


def holds(rows: list[dict], stage: str, ratio: float | None = None) -> bool | None:
    """Whether NISP is ahead of each rival, by more than a standard error over seeds.

    `None` as long as a rival was not measured.
    """
    chosen = _tuned(rows) if ratio is None else ratio
    values = [differences(rows, rival, chosen, stage) for rival in RIVALS]
    if not all(map(len, values)):
        return None
    return all(mean > error for mean, error in map(mean_and_error, values))


def _tuned(rows):
    """The ratio at which networks are fine-tuned."""
    return next((row["ratio"] for row in rows if "curve" in row and "ratio" in row), 0.5)
