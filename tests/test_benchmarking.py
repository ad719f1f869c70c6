"""Latency in the interpreter. How long things take is not tested, but that they are counted."""

import subprocess
import sys

import keras
import numpy as np
import pytest
from nets import residual

import keras_nisp as kn
from keras_nisp.latency.benchmarking import Benchmark, Latency


def dense(units, name="dense"):
    return keras.Sequential([keras.Input((64,)), keras.layers.Dense(units)], name=name)


def test_models_are_measured_in_turns():
    result = kn.benchmark(dense(4), dense(4096, "wide"), rounds=3, repeats=4, warmup=1)
    first, second = result.latencies
    assert (first.name, second.name) == ("dense", "wide")
    assert [len(runs) for runs in first.rounds] == [4, 4, 4]
    assert 0 < first.quantile(0.1) <= first.median <= first.quantile(0.9)
    assert result.speedup < 1  # a thousand times the work
    assert second.bytes > 4 * 64 * 4096


def test_speedup_is_the_median_of_the_ratios_of_rounds():
    first = Latency("a", 1, ((2.0, 2.0), (6.0, 6.0), (10.0, 10.0)))
    second = Latency("b", 1, ((1.0, 1.0), (2.0, 2.0), (1.0, 1.0)))
    result = Benchmark((first, second), 1, 1, "runtime")
    assert result.speedup == 3
    assert "b is 3.00 times as fast as a" in str(result)
    data = result.to_dict()
    assert data["speedup"] == 3
    assert data["models"][0]["median"] == 6
    alone = Benchmark((first,), 1, 1, "runtime")
    assert "speedup" not in alone.to_dict()
    with pytest.raises(ValueError, match="Only one was measured"):
        _ = alone.speedup


def test_files_models_and_contents(tmp_path):
    model = residual()
    export = kn.export_tflite(model, tmp_path / "net.tflite", verbose=0)
    result = kn.benchmark(export.path, export.path.read_bytes(), rounds=1, repeats=1)
    assert [x.name for x in result.latencies] == ["net.tflite", "TFLite model"]
    same = kn.benchmark(model, model, rounds=1, repeats=1, batch_size=3, quantization="int8")
    assert [x.name for x in same.latencies] == ["residual (A)", "residual (B)"]
    assert same.latencies[0].bytes < export.bytes


def test_open_sizes_want_a_shape():
    inputs = keras.Input((None, None, 3))
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(4, 3)(inputs))
    model = keras.Model(inputs, x)
    with pytest.raises(ValueError, match="Expected `input_shape`"):
        kn.benchmark(model)
    with pytest.raises(ValueError, match="to fit inputs"):
        kn.benchmark(model, input_shape=(8, 8, 4))
    assert kn.benchmark(model, input_shape=(8, 9, 3), rounds=1, repeats=1).latencies[0].median > 0


def test_shapes_by_name():
    """Also where the model has its inputs in another order than the names."""
    steps, vector = keras.Input((None, 4), name="steps"), keras.Input((3,), name="a_vector")
    both = [keras.layers.GlobalAveragePooling1D()(steps), vector]
    model = keras.Model([steps, vector], keras.layers.Concatenate()(both))
    shape = {"a_vector": (3,), "steps": (5, 4)}
    assert kn.benchmark(model, input_shape=shape, rounds=1, repeats=1).latencies[0].median > 0
    with pytest.raises(ValueError, match="a shape for each of the inputs"):
        kn.benchmark(model, input_shape={"steps": (5, 4)})


@pytest.mark.filterwarnings("ignore:When providing `inputs` as a dict")
def test_shapes_by_the_keys_of_the_inputs():
    """Also where the layers have other names, and the keys another order than the names."""
    steps, vector = keras.Input((None, 4), name="a_layer"), keras.Input((3,), name="z_layer")
    both = [keras.layers.GlobalAveragePooling1D()(steps), vector]
    outputs = keras.layers.Dense(2)(keras.layers.Dense(6)(keras.layers.Concatenate()(both)))
    model = keras.Model({"steps": steps, "his": vector}, outputs)
    for shape in ({"a_layer": (5, 4), "z_layer": (3,)}, {"his": (3,), "steps": (5, 4)}):
        assert kn.trace(model, shape).input_shapes == [(3,), (5, 4)]
        assert kn.as_functional(model, input_shape=shape, verbose=0).count_params() == 62
    assert kn.benchmark(model, input_shape=shape, rounds=1, repeats=1).latencies[0].median > 0
    with pytest.raises(ValueError, match=r"\['his', 'steps'\] or \['z_layer', 'a_layer'\]"):
        kn.trace(model, {"steps": (5, 4), "z_layer": (3,)})


@pytest.mark.parametrize("argument", ["threads", "rounds", "repeats", "batch_size"])
@pytest.mark.parametrize("value", [0, 1.5, True])
def test_counts_are_checked(argument, value):
    with pytest.raises(ValueError, match=f"Expected `{argument}` to be an integer"):
        kn.benchmark(dense(4), **{argument: value})


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "net.keras"
    dense(4).save(path)
    with pytest.raises(ValueError, match="load a Keras file with"):
        kn.benchmark(path)
    broken = tmp_path / "net.tflite"
    broken.write_bytes(b"\x1c\x00\x00\x00TFL3" + bytes(64))
    with pytest.raises(ValueError, match="does not take"):
        kn.benchmark(broken)


def test_integer_inputs_stay_in_any_vocabulary():
    model = keras.Sequential(
        [keras.Input((5,), dtype="int32"), keras.layers.Embedding(2, 4), keras.layers.Flatten()]
    )
    assert np.isfinite(kn.benchmark(model, rounds=1, repeats=1).latencies[0].median)


def test_the_interpreter_inside_tensorflow_serves_too():
    """Where ai-edge-litert is not installed; its deprecation is nobody's concern."""
    code = """
import sys, warnings
sys.modules["ai_edge_litert"] = sys.modules["ai_edge_litert.interpreter"] = None
warnings.filterwarnings("error", message=".*[Ii]nterpreter")
import keras, keras_nisp as kn
model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
print(type(kn.benchmark(model, rounds=1, repeats=1)).__name__)
from keras_nisp.export.interpreter import load_interpreter
from keras_nisp.export.tflite import convert
print(type(load_interpreter(convert(model))).__module__)
"""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["Benchmark", "tensorflow.lite.python.interpreter"]
