"""A small language model, pruned: perplexity against parameters.

    python benchmarks/language_model.py

A decoder of three blocks learns the characters of the Python documentation that every Python brings
along (`pydoc_data.topics`). Every tenth topic is for the test. Perplexities are per character.
What is removed: a share of all parameters with widths by damage ("all"), or half of the attention
heads or of the MLP's hidden channels alone. Rows hold the perplexity of the refitted model, of the
taught one (by the original, on the same 512 texts without labels), and after a short fine-tuning.
"""

import argparse
import pydoc_data.topics
import sys
from pathlib import Path

import keras
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

import architectures
from results import Rows
from training import reductions, use_threads

import keras_nisp as kn

LENGTH, BATCH, CALIBRATION = 96, 32, 512
SIZES = {"width": 96, "heads": 4, "mlp": 384, "blocks": 3}
IMPORTANCES = ("NISP", "OptimalBrainSurgeon", "Magnitude", "Random")
WHAT = {"heads": {"*:heads": 0.5}, "mlp": {"*_mlp": 0.5}}


class Texts:
    """The documentation as numbers of characters, in two parts."""

    def __init__(self):
        topics = [text for _, text in sorted(pydoc_data.topics.topics.items())]
        self.characters = sorted(set("".join(topics)))
        number = {character: index for index, character in enumerate(self.characters)}
        self.train, self.test = (
            np.array([number[c] for text in part for c in text], np.int32)
            for part in ([t for i, t in enumerate(topics) if i % 10], topics[::10])
        )

    def windows(self, count: int, seed: int) -> np.ndarray:
        """Texts for training, drawn: one more character than the model takes in."""
        starts = np.random.default_rng(seed).integers(len(self.train) - LENGTH, size=count)
        return self.train[starts[:, None] + np.arange(LENGTH + 1)]

    def tested(self) -> np.ndarray:
        """All texts for the test."""
        count = (len(self.test) - 1) // LENGTH
        return self.test[np.arange(count)[:, None] * LENGTH + np.arange(LENGTH + 1)]


def fit(model: keras.Model, texts: Texts, steps: int, rate: float, seed: int) -> None:
    """Trains by Adam with a cosine."""
    optimizer = keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(rate, steps))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss, jit_compile=False)
    windows = texts.windows(steps * BATCH, seed)
    model.fit(windows[:, :-1], windows[:, 1:], BATCH, shuffle=False, verbose=0)


def perplexity(model: keras.Model, windows: np.ndarray) -> float:
    """Of a character, given those before it."""
    logits = model.predict(windows[:, :-1], batch_size=64, verbose=0)
    loss = keras.losses.sparse_categorical_crossentropy(windows[:, 1:], logits, from_logits=True)
    return float(np.exp(np.mean(loss)))


def written(model: keras.Model, texts: Texts, start: str, count: int = 60) -> str:
    """A start, and the likeliest characters after it."""
    tokens = [texts.characters.index(character) for character in start]
    for _ in range(count):
        now = np.zeros((1, LENGTH), np.int32)
        now[0, : len(tokens)] = tokens
        tokens.append(int(np.argmax(model(now)[0, len(tokens) - 1])))
    return "".join(texts.characters[token] for token in tokens)


def base(texts: Texts, args: argparse.Namespace) -> keras.Model:
    """The trained model, kept in a file."""
    path = Path(args.out) / "language_model.keras"
    if not path.exists():
        keras.utils.set_random_seed(0)
        model = architectures.language_model(len(texts.characters), LENGTH, **SIZES)
        fit(model, texts, args.steps, 2e-3, seed=0)
        path.parent.mkdir(parents=True, exist_ok=True)
        model.save(path)
    return keras.models.load_model(path)


def pruned(model, texts, args, importance: str, what: str, level: float) -> dict:
    x = texts.windows(CALIBRATION, seed=1)[:, :-1]
    needs_data = importance in ("NISP", "OptimalBrainSurgeon")
    scores = getattr(kn, importance)(*[x] * needs_data)
    budget = {"ratios": WHAT[what]} if what in WHAT else {"params_reduction": level}
    plan = kn.plan_pruning(model, scores, calibration=x, **budget)
    row, tested = {}, texts.tested()
    small = kn.rebuild(model, plan)
    row["surgery"] = perplexity(small, tested)
    kn.recalibrate(small, x, model, plan)
    row["refitted"] = perplexity(small, tested)
    tuned = keras.models.clone_model(small)
    tuned.set_weights(small.get_weights())
    kn.recalibrate(small, x, model, plan, compensate=None, teach_steps=args.teach_steps)
    row["taught"] = perplexity(small, tested)
    fit(tuned, texts, args.tune_steps, 5e-4, seed=2)
    row["tuned"] = perplexity(tuned, tested)
    return {**row, **reductions(small, model), "written": written(tuned, texts, "The value of ")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--tune-steps", type=int, default=200)
    parser.add_argument("--teach-steps", type=int, default=200)
    parser.add_argument("--levels", nargs="+", type=float, default=[0.3, 0.5])
    parser.add_argument("--importances", nargs="+", choices=IMPORTANCES, default=IMPORTANCES)
    parser.add_argument("--out", default="out", help="folder of the trained model")
    parser.add_argument("--threads", type=int, help="limits TensorFlow to so many")
    args = parser.parse_args()
    use_threads(args.threads)
    texts, rows = Texts(), Rows("language_model", args)
    model = base(texts, args)
    original = {"importance": "original", "what": "all", "level": 0.0}
    rows.once(
        original,
        lambda: {
            "refitted": perplexity(model, texts.tested()),
            "parameters": model.count_params(),
            "written": written(model, texts, "The value of "),
        },
    )
    for importance in args.importances:
        for what, levels in {"all": args.levels, "heads": [0.5], "mlp": [0.5]}.items():
            for level in levels:
                key = {"importance": importance, "what": what, "level": level}
                rows.once(key, pruned, model, texts, args, *key.values())


if __name__ == "__main__":
    main()
