"""What came of each claim, in one line each, computed from the rows of all experiments."""

import itertools
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from experiments import claims
from experiments.tables import markdown

Rows = dict[str, list[dict]]  # of one experiment, by task

# What claims about curves are looked at: levels of FLOPs, and epochs of fine-tuning.
LEVELS = {0.5: "half", 0.75: "three quarters"}
AFTER = {0: "without labels", 2: "after 2 epochs"}


def table(results: Callable[[str], Rows], structure: list[dict]) -> str:
    """Claims and what was measured, as Markdown.

    Args:
        results: gives the rows of an experiment by its name.
        structure: the rows of paper_tables.
    """
    lines = [
        [
            "The papers' structures come out of our planners",
            f"{sum(row['within'] for row in structure)} of {len(structure)} rows within 0.5 points",
        ],
        *_importances(results("importances")),
        *_other_rivals(results("importances")),
        *_depth(results("depth")),
        *_propagation(results("propagation")),
        *_centripetal(results("centripetal"), results("headline")),
        *_headline(results("headline")),
        *_combinations(results("combinations")),
        *_curves(results("curves")),
        *_collapse(results("collapse")),
    ]
    return markdown(["claim", "measured"], lines)


def _importances(tasks: Rows) -> Iterator[list[str]]:
    if not tasks:
        return
    for stage, ratio, text in (
        ("one_shot", 0.25, "NISP leads without repair, a quarter removed"),
        ("recalibrated", 0.25, "NISP leads recalibrated, a quarter removed"),
        ("compensated", 0.25, "NISP leads compensated, a quarter removed"),
        ("epoch 1", None, "NISP recovers faster (after one epoch)"),
        ("last", None, "NISP leads after fine-tuning"),
    ):
        outcomes = {t: claims.holds(rows, stage, ratio) for t, rows in tasks.items()}
        ahead = [_with_seeds(task, tasks[task]) for task, outcome in outcomes.items() if outcome]
        names = f" ({', '.join(ahead)})" if ahead else ""
        if count := sum(outcome is not None for outcome in outcomes.values()):
            yield [
                f"{text}: ahead of L1, layer-by-layer and random",
                f"on {len(ahead)} of {count} networks{names}",
            ]
    for ratio in (0.25, 0.5):
        gains = [
            100 * np.mean([row["compensated"] - row["recalibrated"] for row in chosen])
            for rows in tasks.values()
            if (chosen := [r for r in rows if r.get("ratio") == ratio and "compensated" in r])
        ]
        span = " to ".join(dict.fromkeys(f"{gain:+.1f}" for gain in (min(gains), max(gains))))
        yield [
            f"Linear compensation beats recalibration, {100 * ratio:g} % removed",
            f"{span} points, mean over importances, by network",
        ]


def _other_rivals(tasks: Rows) -> Iterator[list[str]]:
    """NISP against what needs no data, and what needs labels; a quarter removed."""
    for rival, text in (
        ("NISPMag", "NISP is ahead of NISPMag, which needs no data"),
        ("Taylor", "NISP is ahead of Taylor, which needs labels"),
    ):
        for stage in ("recalibrated", "compensated"):
            found = {t: claims.differences(rows, rival, 0.25, stage) for t, rows in tasks.items()}
            gains = {t: 100 * values.mean() for t, values in found.items() if len(values)}
            if gains:
                each = _by_task(gains, tasks)
                yield [f"{text}: {stage}, a quarter removed", f"points: {each}"]


def _by_task(gains: dict[str, float], tasks: Rows) -> str:
    return ", ".join(f"{gain:+.1f} {_with_seeds(t, tasks[t])}" for t, gain in gains.items())


def _with_seeds(task: str, rows: list[dict]) -> str:
    """The task's name, with a warning if there is but one seed."""
    return task if len({row["seed"] for row in rows}) > 1 else f"{task}: one seed"


def _depth(tasks: Rows) -> Iterator[list[str]]:
    ahead = [
        task
        for task, rows in tasks.items()
        if _ware(rows, "NISP") < min(_ware(rows, "LayerByLayer"), _ware(rows, "Random"))
    ]
    if tasks:
        yield [
            "NISP's error at the final responses is below layer-by-layer's and random's",
            f"at {len(ahead)} of {len(tasks)} depths",
        ]


def _ware(rows, name):
    return np.mean([row["ware"] for row in rows if row["importance"] == name])


def _propagation(tasks: Rows) -> Iterator[list[str]]:
    """One pass minus repeated passes, recalibrated, a quarter removed."""
    gains = {}
    for task, rows in tasks.items():
        found = {
            variant: [
                row["recalibrated"]
                for row in rows
                if (row["variant"], row["ratio"]) == (variant, 0.25)
            ]
            for variant in ("one pass", "repeated")
        }
        if all(found.values()):
            gains[task] = 100 * (np.mean(found["one pass"]) - np.mean(found["repeated"]))
    if gains:
        each = _by_task(gains, tasks)
        yield ["One propagation is as good as one after each layer", f"points: {each}"]


def _centripetal(tasks: Rows, headline: Rows) -> Iterator[list[str]]:
    rows = [row for rows in tasks.values() for row in rows if "unmerged" in row]
    changes = [abs(row["accuracy"] - row["unmerged"]) for row in rows]
    merged = [row for rows in headline.values() for row in rows if "merged" in row]
    changes += [abs(row["merged"] - row["curve"][-1]) for row in merged]
    if changes:
        yield [
            "C-SGD's merge costs no accuracy",
            f"{len(changes)} merges, at most {100 * max(changes):.2f} points",
        ]


def _headline(tasks: Rows) -> Iterator[list[str]]:
    for rows in tasks.values():
        base = next(row["curve"][0] for row in rows if row["method"] == "baseline")
        longer = [row for row in rows if row["method"] == "baseline, trained on"]
        for row in rows:
            if "flops_removed" in row:
                start, end = row.get("base", base), row.get("merged", row["curve"][-1])
                aside = _aside(other for other in longer if other["epochs"] == row["epochs"])
                yield [
                    f"{row['method']}: ResNet-56's accuracy at "
                    f"-{100 * row['flops_removed']:.2f} % FLOPs",
                    f"{start:.4f} -> {end:.4f} in {len(row['curve'])} epochs: "
                    f"{100 * (end - start):+.2f} points{aside}",
                ]


def _combinations(tasks: Rows) -> Iterator[list[str]]:
    for task, rows in tasks.items():
        base = np.mean([row["curve"][0] for row in rows if row["arm"] == "baseline"])
        arms = dict.fromkeys(row["arm"] for row in rows if "flops_removed" in row)
        ends = {a: np.mean([r["accuracy"] for r in rows if r["arm"] == a]) for a in arms}
        if ends:
            best = max(ends, key=ends.get)
            epochs = next(len(row["curve"]) for row in rows if row["arm"] == best)
            aside = _aside(row for row in rows if row["arm"] == "baseline, trained on")
            yield [
                f"Half of the FLOPs within a point of the baseline: {task}",
                f"{best}, {epochs} epochs: {base:.4f} -> {ends[best]:.4f}, "
                f"{100 * (ends[best] - base):+.2f} points{aside}",
            ]


def _curves(tasks: Rows) -> Iterator[list[str]]:
    """The default against what it was, and the gain of each of its parts."""
    for better, worse, text in (
        ("allocated", "former default", "The default is ahead of the former one"),
        ("allocated", "uniform", "Widths by damage are ahead of one ratio"),
        ("taught", "allocated", "Teaching is a gain on top"),
    ):
        for (level, removed), (epochs, trained) in itertools.product(LEVELS.items(), AFTER.items()):
            at = {task: _measured(rows, level, epochs) for task, rows in tasks.items()}
            both = {task: _paired(rows, better, worse) for task, rows in at.items()}
            gains = {task: _gain(rows, better, worse) for task, rows in both.items() if rows}
            if gains:
                title = f"{text}: NISP, {removed} of the FLOPs, {trained}"
                yield [title, f"points: {_by_task(gains, both)}"]


def _measured(rows, level: float, epochs: int) -> list[dict]:
    """NISP's rows at a level, after so many epochs."""
    wanted = "NISP", level, epochs
    keys = "importance", "level", "epochs"
    return [row for row in rows if tuple(map(row.get, keys)) == wanted]


def _paired(rows, *arms):
    """The rows of some arms, of the seeds that all of them have."""
    seeds = set.intersection(*({row["seed"] for row in rows if row["arm"] == arm} for arm in arms))
    return [row for row in rows if row["arm"] in arms and row["seed"] in seeds]


def _gain(rows, better, worse):
    """In points, the mean over seeds."""
    means = [np.mean([row["accuracy"] for row in rows if row["arm"] == a]) for a in (better, worse)]
    return 100 * float(means[0] - means[1])


def _collapse(tasks: Rows) -> Iterator[list[str]]:
    """C-SGD with few steps, seed by seed: the mean in points and its standard error."""
    for better, worse, text in (
        ("C-SGD", "NISP", "C-SGD is ahead of NISP that is fine-tuned for as long"),
        ("C-SGD, teacher", "NISP, teacher", "C-SGD is ahead of NISP, both with a teacher"),
        ("C-SGD, teacher", "C-SGD", "A teacher helps C-SGD"),
        ("C-SGD, early, teacher", "C-SGD, teacher", "Clusters that collapse early help"),
    ):
        for task, rows in tasks.items():
            found = {(row["arm"], row["seed"]): row["accuracy"] for row in rows}
            seeds = [seed for arm, seed in found if arm == better and (worse, seed) in found]
            gains = 100 * np.array([found[better, s] - found[worse, s] for s in seeds])
            if len(gains):
                mean, error = claims.mean_and_error(gains)
                spread = f" ± {error:.2f}" if len(gains) > 1 else ""
                points = f"{mean:+.2f}{spread} points, seeds: {len(gains)}"
                yield [f"{text}: {task}, half of the FLOPs", points]


def _aside(rows: Iterable[dict]) -> str:
    """What the unpruned network reaches that is trained on."""
    curves = [row["curve"] for row in rows]
    if not curves:
        return ""
    end = np.mean([curve[-1] for curve in curves])
    return f" (the baseline, trained on for {len(curves[0])} epochs: {end:.4f})"
