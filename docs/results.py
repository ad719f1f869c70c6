"""Writes docs/results.md and its figures from the JSON in benchmarks/results.

python docs/results.py
"""

import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import experiments
import plots
from experiments import claims, verdicts
from experiments.tables import markdown
from results import FOLDER, load_rows

PAGE = Path(__file__).with_name("results.md")
HEADER = """# Results

Written by `python docs/results.py` from the JSON in `benchmarks/results`. Each section names the
command that makes its figures; `DIR` is a TensorFlow Datasets directory (without `--data-dir` the
data are downloaded), `WEIGHTS` the folder of the two files with published weights. A command that
is given again computes only what is missing. Figures with ± are means over seeds with their
standard deviation; those without are of one seed.

**CIFAR-10 here is a JPEG copy.** The lossy images cost published networks ten points, so
accuracies compare with the baselines beside them, not with those of papers.
"""


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A section for an experiment of benchmarks/accuracy.py."""

    name: str
    title: str
    findings: Callable[[dict], str] | None = None
    figure: bool = False


def ranking(results: dict[str, list[dict]]) -> str:
    """Whether NISP's claims hold, network by network."""
    parts = [
        "NISP's accuracy minus that of its rivals, in points (mean and standard error over seeds):"
    ]
    for title, stage, ratio in (
        ("a quarter removed, no repair", "one_shot", 0.25),
        ("half removed, no repair", "one_shot", 0.5),
        ("a quarter removed, recalibrated", "recalibrated", 0.25),
        ("half removed, recalibrated", "recalibrated", 0.5),
        ("after one epoch of fine-tuning", "epoch 1", None),
        ("after the last epoch", "last", None),
    ):
        parts.append(f"**{title[0].upper()}{title[1:]}**\n\n{claims.table(results, stage, ratio)}")
    return "\n\n".join(parts)


NO_GAIN = """## What was tried and is no gain

Trials on a ResNet-20 (CIFAR-10), without labels; their rows were not kept:

* **SynFlow as importance.** After the refit it is behind a random choice: 0.5545 against 0.5630,
  -50.8 % of the FLOPs.
* **Fitting all kernels together, around a network that is pruned already.** It diverges: each
  kernel makes up for the same errors. The KL divergence from the original is 0.67, and 0.28 to
  0.31 if they are fitted one after the other.
* **Measuring the six best predicted moves of a round** (`allocation="measured"`) instead of
  trusting the prediction: 0.792 against 0.797 to 0.801 at half of the FLOPs.
* **Teaching on shifted images**, 4 pixels at most, besides mirrored ones: at -30 % of the FLOPs
  0.868 after 600 steps, and 0.870 with mirror images alone; 1,500 steps of those have 0.871, of
  0.878 before. (Another base, 0.8779, widths by 128 samples: 600 steps with mirror images 0.8624,
  1,500 with shifts besides 0.8627; by 256 samples 0.8719, and 0.8710 after 1,500 steps, or 0.8716
  at a third of the rate.) Images that are mixed help a little: mixup 0.8729, parts of others
  (CutMix) 0.8741 and, by Keras' layer, 0.8734, of which 1,500 steps make 0.8723. On three bases
  -30 % has 0.8712 with them and 0.8699 with mirror images, of 0.8782: not within half a point.
* **What else is no more at -30 %** (base 0.8775, 600 steps, mirrored images with parts of others:
  0.8697). Ten times as many images, 5,000: 0.8712, so that it is not their number. Two halves with
  teaching in between: 0.8701. Averaged weights (EMA) at a constant rate: 0.8702. L1 norms as the
  importance: 0.8708. OBS has 0.8744 there, and on a second base 0.8695 where NISP has 0.8734: one
  network with one choice of images is good for 0.2 points either way.
* **Teaching better at -30 %** (the same base and plan; KL: the divergence from the original on
  5,000 training images that teaching has not seen). Outputs come closer, and accuracy hardly moves:
  0.8697 (KL 0.048) by default, 0.8699 (0.044) at three times the rate with features at four times
  the weight, 0.8706 (0.040) after 2,000 steps of that, 0.8712 (0.036) if these see 5,000 images. So
  what is left is the network's own limit. Features at a fifth of the weight 0.8676, at none 0.8621,
  fading out 0.8688; a temperature of 1 0.8693; shifts and zoom besides 0.8691. Answers that are
  averaged over each image and its mirror image, with which the original has 0.8897 instead of
  0.8775, are not learned from 512 images: 0.8681. One ratio inside of the blocks, taught: 0.8641.
* **More positions for the refit of large kernels**: 12 or 20 for each feature change nothing. For
  small kernels four times as many do, and they have them: at -50 % 0.7962 becomes 0.8077 and
  0.7954 becomes 0.8023 (two bases), at -30 % 0.8446 becomes 0.8512 and 0.8528 becomes 0.8558;
  sixteen times as many are no better, nor are other positions for each image. Taught at -30 % the
  gain is gone (0.8624 with and without, one base). The rows above were measured before.
* **Fewer positions for the refit** (uniform, -50 %; where the number of features decides how many
  are looked at): 5 for each feature 0.743, 4 0.739, 3 0.722. They stay 5.
* **A compiled walk for the refit**: of a ResNet-50 a trace costs what it saves on 64 images.
* **More for widths by damage than 256 samples** (with which refitted networks have 0.8608 at -30 %
  and 0.8176 at -50 % of the FLOPs, where 128 samples have 0.8548 and 0.8107; means over three
  choices of 512 images, base 0.8779): four directions of the outputs instead of one 0.8609 and
  0.8580 where one has 0.8630 and 0.8579; both halves of the images in turn, for the refit and
  for the damage, 0.8612 at twice the cost; as many rows for its refits as the last one looks at,
  0.8603; 16 rounds 0.8601 where 8 have 0.8630; `"measured"` 0.8586.
* **Many rounds of allocation.** At half of the FLOPs, refitted, 20 rounds have 0.806 and 8 rounds
  0.807; 5 rounds have 0.793, and 8 without a look at what kernels read by then 0.785. One such
  figure moves by 0.01 with the calibration data.
* **Damages by probabilities as they are.** From 64 samples they allocate to 0.776, from 256 to
  0.807. At a temperature of 2, which is used, 64 samples have 0.804 (0.802 and 0.811 on other
  data); at 4, 0.797.

C-SGD on the residual CNN (15,000 images of Fashion-MNIST, 3 epochs, half of the FLOPs, one seed;
rows were not kept, and 0.003 is the standard error of an accuracy on 10,000 images). A teacher
helps: 0.9154 with it and 0.9057 without; NISP, refitted and fine-tuned, has 0.9149 and 0.9093.
With a teacher these change nothing that could be measured:

* **Merging early** (`tolerance=1e-2`, after one of three epochs, then a refit and the rest on the
  small network, whose steps are cheaper): 0.9153.
* **Merging at once**, without C-SGD (`rebuild(..., force=True)`, `recalibrate`, fine-tuning):
  0.9166.

Which importance, on a small ViT (CIFAR-10, half of the FLOPs, no labels, one seed; rows above):
with one ratio and a refit OBS has 0.4979, L1 norms 0.5036, NISP 0.4950 and chance 0.4834; with
widths by damage and teaching they are level (0.5563, 0.5519, 0.5556 and 0.5561; the standard error
is 0.005).

A teacher over ten epochs (ResNet-56, -43.6 % of the FLOPs by NISP, one seed; rows under the papers'
headlines): 0.8922 with it, 0.8947 by labels alone. The teacher, the network before pruning, has
0.8877, and 0.9021 if it is trained on for as long. A better teacher is a gain: trained on for 4 of
the 10 epochs before it is pruned, the network has 0.8972, and the pruned one 0.8971 after the other
6.

Clusters instead of removal, refitted, without training: 0.9091 and 0.8997 (seeds 0 and 1; clusters
by activations 0.9071 and 0.9041), where NISP has 0.9092 and 0.9082.

On LeNet (MNIST, -75 % of the FLOPs, 3 seeds; rows above) two parts are no gain: teaching after
widths by damage (0.9865 and 0.9866 without), and the refit by tap with one ratio (0.9846; the
former default has 0.9849). Both differences are a few of 10,000 images. On the residual CNN
(Fashion-MNIST, 3 seeds) widths by damage are level with one ratio at -50 % of the FLOPs (0.9073
and 0.9067) and behind it at more: 0.8978 and 0.8998 at -60 %, 0.8596 and 0.8678 at -80 %. After two
epochs of fine-tuning at -50 % they are level with the former default (0.9160 and 0.9162; the
standard error is 0.0009); taught before, 0.9184.
"""


EXPERIMENTS = (
    Experiment("curves", "Accuracy against FLOPs, without labels", figure=True),
    Experiment("headline", "The papers' headlines: ResNet-56", figure=True),
    Experiment("combinations", "Better than the papers", figure=True),
    Experiment("importances", "Which importance", ranking, figure=True),
    Experiment("depth", "Error against depth", figure=True),
    Experiment("propagation", "One propagation or many"),
    Experiment("centripetal", "C-SGD, pruning, scratch"),
    Experiment("collapse", "C-SGD with few steps"),
)


def section(experiment: Experiment) -> str:
    """Heading, what was done, command, figure, tables and findings; empty if there are no rows."""
    results = experiments.results(experiment.name)
    if not results:
        return ""
    module = experiments.load(experiment.name)
    _, _, text = module.__doc__.partition("\n\n")
    parts = [f"## {experiment.title}", module.__doc__.splitlines()[0], text.strip()]
    parts.append(f"```\n{command(experiment.name, results)}\n```")
    if experiment.figure and (plots.FIGURES / f"{experiment.name}.png").exists():
        parts.append(f"![{experiment.title}](figures/{experiment.name}.png)")
    if experiment.findings is not None:
        parts.append(experiment.findings(results))
    parts += [module.tables(results), provenance(f"{experiment.name}_{task}" for task in results)]
    return "\n\n".join(parts)


def command(name: str, results: dict) -> str:
    """What makes the figures of an experiment."""
    seeds = 1 + max(row.get("seed", 0) for rows in results.values() for row in rows)
    tasks = " ".join(results)
    return (
        f"python benchmarks/accuracy.py {name} --data-dir DIR --weights-dir WEIGHTS "
        f"--seeds {seeds} \\\n    --tasks {tasks}"
    )


def provenance(names) -> str:
    """Machine, versions and dates of results."""
    records = [json.loads((FOLDER / f"{name}.json").read_text()) for name in names]
    dates = sorted({record["date"] for record in records})
    machines = sorted({f"{r['machine']['cpu']}, {r['machine']['cores']} cores" for r in records})
    versions = records[0]["versions"]
    hours = sum(row.get("seconds", 0) for r in records for row in r.get("rows", ())) / 3600
    spent = f"; {hours:.1f} hours" if hours else ""
    return (
        f"*{' to '.join(dict.fromkeys((dates[0], dates[-1])))}; {'; '.join(machines)}; Keras "
        f"{versions['keras']}, TensorFlow {versions['tensorflow']}{spent}.*"
    )


def structure() -> str:
    """The tables of benchmarks/paper_tables.py."""
    rows = load_rows("paper_tables")
    fitting = sum(row["within"] for row in rows)
    parts = [
        "## Structure: what the papers' plans remove",
        f"{fitting} of {len(rows)} rows are within 0.5 points of what was published, in FLOPs and, "
        "where they were given, in parameters. Figures in percent.",
        "```\npython benchmarks/paper_tables.py\n```",
    ]
    head = ["", "row", "read as", "FLOPs", "ours", "parameters", "ours", "within 0.5"]
    for paper in dict.fromkeys(row["paper"] for row in rows):
        chosen = [row for row in rows if row["paper"] == paper]
        parts.append(f"**{paper}**\n\n{markdown(head, map(_structure_cells, chosen))}")
    misses = [row for row in rows if not row["within"]]
    reasons = [f"* {r['paper']}, {r['network']} {r['row']}: {r['why']}" for r in misses]
    parts.append("What does not fit, and why:\n\n" + "\n".join(reasons))
    return "\n\n".join([*parts, provenance(["paper_tables"])])


def _structure_cells(row) -> list[str]:
    cells = [row["network"], row["row"], row["interpretation"]]
    for key in ("flops", "params"):
        published = row["published"][key]
        cells += ["" if published is None else f"{published:g}", f"{row['ours'][key]:.2f}"]
    return [*cells, "yes" if row["within"] else "no"]


def summary() -> str:
    """One line for each claim."""
    table = verdicts.table(experiments.results, load_rows("paper_tables"))
    return f"## Claims, and what was measured\n\n{table}"


def language() -> str:
    """The table of benchmarks/language_model.py."""
    rows = load_rows("language_model")
    (original,) = (row for row in rows if row["importance"] == "original")
    parts = [
        "## A small language model: perplexity against parameters",
        "A decoder of three blocks on characters of the Python documentation "
        f"({original['parameters']:,} parameters, perplexity {original['refitted']:.2f} on topics "
        "that were held out, one seed). Pruned are a share of all parameters with widths by "
        "damage, or half of the attention heads or of the MLP's hidden channels alone. Then it is "
        "refitted; from there it is taught by the original on 512 texts without labels, or "
        "fine-tuned on labels, 200 steps each.",
        "```\npython benchmarks/language_model.py\n```",
    ]
    head = ["importance", "what", "parameters", "surgery", "refitted", "taught", "fine-tuned"]
    table = markdown(head, (_language_cells(row) for row in rows if row is not original))
    return "\n\n".join([*parts, table, provenance(["language_model"])])


def _language_cells(row) -> list[str]:
    gone = f"-{100 * row['parameters_removed']:.0f} %"
    stages = (row[stage] for stage in ("surgery", "refitted", "taught", "tuned"))
    return [row["importance"], row["what"], gone, *(f"{figure:.2f}" for figure in stages)]


def page() -> str:
    parts = [HEADER, summary(), structure(), *map(section, EXPERIMENTS), language(), NO_GAIN]
    return "\n\n".join(part.strip() for part in parts if part) + "\n"


def main():
    plots.main()
    PAGE.write_text(page())


if __name__ == "__main__":
    main()
