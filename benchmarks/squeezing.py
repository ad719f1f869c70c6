"""Train wide, then squeeze: examples/squeeze.py, with its figures kept.

python benchmarks/squeezing.py [--dataset fashion_mnist --data-dir DIR]
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

import squeeze
from results import save_results

if __name__ == "__main__":
    args = squeeze.parse()
    rows = squeeze.run(args)
    squeeze.show(rows, args)
    save_results(f"squeezing_{args.dataset}", {"rows": rows}, args)
