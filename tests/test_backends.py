"""Models of other backends: their files are pruned here and loaded there."""

import importlib.util
import os
import subprocess
import sys

import keras
import numpy as np
import pytest

import keras_nisp as kn

TRAINS = """
import sys, keras, numpy as np
keras.utils.set_random_seed(0)
inputs = keras.Input((8, 8, 3))
x = keras.layers.Conv2D(8, 3, padding="same")(inputs)
x = keras.layers.ReLU()(keras.layers.BatchNormalization()(x))
x = keras.layers.Add()([x, keras.layers.Conv2D(8, 3, padding="same")(x)])
outputs = keras.layers.Dense(4)(keras.layers.GlobalAveragePooling2D()(x))
model = keras.Model(inputs, outputs)
data = np.load(sys.argv[1])
if keras.backend.backend() != "numpy":  # which cannot train
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adam", loss)
    model.fit(data["x"], data["y"], verbose=0)
model.save(sys.argv[2])
"""
LOADS = """
import sys, keras, numpy as np
model = keras.models.load_model(sys.argv[2])
np.save(sys.argv[3], keras.ops.convert_to_numpy(model(np.load(sys.argv[1])["x"])))
print(keras.backend.backend(), model.count_params())
"""


@pytest.mark.parametrize("backend", ["numpy", "jax", "torch"])
def test_a_file_crosses_backends(backend, tmp_path, rng):
    needed = "jax" if backend == "numpy" else backend  # Keras' backend for NumPy imports JAX
    if importlib.util.find_spec(needed) is None:
        pytest.skip(f"{needed} is not installed")

    def there(code, *files):
        command = [sys.executable, "-c", code, *(str(tmp_path / name) for name in files)]
        env = {**os.environ, "KERAS_BACKEND": backend}
        return subprocess.run(command, env=env, check=True, capture_output=True, text=True).stdout

    x = rng.normal(size=(64, 8, 8, 3)).astype("float32")
    np.savez(tmp_path / "data.npz", x=x, y=rng.integers(0, 4, 64))
    there(TRAINS, "data.npz", "trained.keras")
    model = keras.models.load_model(tmp_path / "trained.keras")
    small = kn.prune(model, kn.NISP(), ratio=0.5, calibration=x, verbose=0)
    small.save(tmp_path / "small.keras")
    printed = there(LOADS, "data.npz", "small.keras", "outputs.npy")
    assert printed.split()[-2:] == [backend, str(small.count_params())]
    outputs = small.predict(x, verbose=0)
    difference = np.abs(np.load(tmp_path / "outputs.npy") - outputs).max()
    assert small.count_params() < model.count_params()
    assert difference <= 1e-5 * np.abs(outputs).max()
