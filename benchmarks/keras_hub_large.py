"""What a prune of a language model of its real size takes: seconds and peak memory.

    pip install ".[zoo]"
    python benchmarks/keras_hub_large.py

GPT-2 (small) and a Llama of the shape of Llama 3.2 1B in bfloat16, with random weights; half of the
channels of each group go, by L1 norms. Each model has a process of its own, whose peak memory is
read after every step.
"""

import argparse
import json
import os
import resource
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

LENGTH = 64
MODELS = {
    "gpt2_base": (
        "GPT2Backbone",
        {
            "vocabulary_size": 50257,
            "num_layers": 12,
            "num_heads": 12,
            "hidden_dim": 768,
            "intermediate_dim": 3072,
            "max_sequence_length": 1024,
        },
    ),
    "llama_1b": (
        "LlamaBackbone",
        {
            "vocabulary_size": 128256,
            "num_layers": 16,
            "num_query_heads": 32,
            "num_key_value_heads": 8,
            "hidden_dim": 2048,
            "intermediate_dim": 8192,
            "dtype": "bfloat16",
        },
    ),
}


def measure(name: str) -> dict:
    import keras_hub

    import keras_nisp as kn

    kind, settings = MODELS[name]
    shapes = [(LENGTH,), (LENGTH,)]
    row: dict = {"model": name}

    def step(title, function):
        wall, cpu = time.perf_counter(), time.process_time()
        result = function()
        row[title] = {
            "seconds": round(time.perf_counter() - wall, 1),
            "cpu_seconds": round(time.process_time() - cpu, 1),
            "peak_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
        }
        return result

    model = step("build", lambda: getattr(keras_hub.models, kind)(**settings))
    graph = step("as_functional", lambda: kn.as_functional(model, input_shape=shapes, verbose=0))
    plan = step(
        "plan", lambda: kn.plan_pruning(graph, kn.Magnitude(), ratio=0.5, input_shape=shapes)
    )
    small = step("rebuild", lambda: kn.rebuild(graph, plan))
    row["parameters"] = [model.count_params(), small.count_params()]
    result = step("verify", lambda: kn.verify(small, graph, plan))
    return {**row, "verified": result.ok, "difference": result.relative}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--one", choices=MODELS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(args.one)))
        return
    from results import measure_apart

    measure_apart("keras_hub_large", __file__, args.models)


if __name__ == "__main__":
    main()
