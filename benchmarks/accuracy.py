"""The accuracy experiments.

    python benchmarks/accuracy.py EXPERIMENT --data-dir DIR [--weights-dir DIR] [--tasks TASK ...]

Each experiment (a file in benchmarks/experiments, which says what it does) runs on some tasks
(benchmarks/training.py). Rows are kept in results/EXPERIMENT_TASK.json as they are done. Rows that
are there already are not computed again, and a training that was interrupted resumes with the epoch
that was interrupted: to resume, give the same command again.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import experiments
from experiments import curves
from results import Rows
from training import TASKS, Lab, use_threads


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("experiment", choices=experiments.NAMES)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, help="by default all it is meant for")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--data-dir", help="TensorFlow Datasets directory; else data are downloaded"
    )
    parser.add_argument("--weights-dir", help="where resnet20_cifar10.npz and resnet56_... are")
    parser.add_argument("--out", default="out", help="folder for base networks and backups")
    parser.add_argument("--threads", type=int, help="limits TensorFlow to so many")
    parser.add_argument("--epochs", nargs="+", type=int, default=[0], help="of fine-tuning")
    parser.add_argument("--methods", nargs="+", help="of the headline; by default all")
    parts = parser.add_argument_group("curves")
    parts.add_argument("--levels", nargs="+", type=float, default=curves.LEVELS, help="of FLOPs")
    parts.add_argument("--arms", nargs="+", choices=curves.ARMS, default=curves.DEFAULT)
    parts.add_argument("--importances", nargs="+", default=curves.IMPORTANCES)
    args = parser.parse_args()
    use_threads(args.threads)
    experiment = experiments.load(args.experiment)
    results = {}
    for task in args.tasks or experiment.TASKS:
        lab, rows = Lab(task, args), Rows(f"{args.experiment}_{task}", args)
        for seed in range(args.seeds):
            experiment.run(lab, rows, seed)
        results[task] = list(rows)
    print(experiment.tables(results))


if __name__ == "__main__":
    main()
