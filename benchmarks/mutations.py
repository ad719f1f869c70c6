"""Damaged plan files, in large numbers: the right model, or an error that says so.

    python benchmarks/mutations.py [--count 10000] [--seed 0]

Files of plans (pruning, merging, whole groups, several inputs, attention) are mutated as JSON
(types, ranges, keys and entries gone, doubled, moved or taken from elsewhere, deep nesting) and as
bytes; see `tests/plan_mutations.py`. What can still be read is used for everything that a plan is
for. It counts as right if the model is that of the plan before, or one that is verified for what
the plan now says.
"""

import argparse
import collections
import contextlib
import io
import sys
import tempfile
import time
import warnings
from pathlib import Path

import keras
from results import save_results

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from plan_mutations import mutant, outcome
from plan_subjects import subjects


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    started, counts, bad = time.perf_counter(), collections.Counter(), []
    made = subjects()
    files = [subject.plan.to_dict() for subject in made]
    by_kind = collections.defaultdict(collections.Counter)
    with tempfile.TemporaryDirectory() as folder:
        for done in range(args.count):
            index, kind, data = mutant(args.seed + done, files)
            with contextlib.redirect_stdout(io.StringIO()):
                found = outcome(data, made[index], Path(folder), whole=done % 10 == 0)
            word = found.split(":")[0]
            counts[word] += 1
            by_kind[kind][word] += 1
            if word.startswith(("raw", "WRONG")):
                bad.append({"seed": args.seed + done, "file": made[index].name, "outcome": found})
                print(bad[-1], kind, flush=True)
            if (done + 1) % 500 == 0:
                seconds = time.perf_counter() - started
                print(f"{done + 1} files, {seconds:.0f} s, {dict(counts)}", flush=True)
                keras.backend.clear_session()
    summary = {"files": args.count, **counts, "seconds": round(time.perf_counter() - started)}
    by_kind = {kind: dict(words) for kind, words in sorted(by_kind.items())}
    save_results("mutations", {"summary": summary, "by_mutation": by_kind, "others": bad}, args)
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()
