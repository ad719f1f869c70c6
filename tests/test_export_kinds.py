"""Exports of whatever people build: fixed batches, states, indices, flags, words, open axes."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops
from nets import residual

import keras_nisp as kn
from keras_nisp.export.tflite import convert, runner

SHAPES = {"SHAPE", "STRIDED_SLICE", "PACK"}
EXPORTS = {
    "TFLite": lambda model, folder, **data: kn.export_tflite(
        model, folder / "net.tflite", verbose=0, **data
    ),
    "SavedModel": lambda model, folder, **data: kn.export_serving(
        model, folder / "net", verbose=0, **data
    ),
    "ONNX": lambda model, folder, **data: kn.export_onnx(
        model, folder / "net.onnx", verbose=0, **data
    ),
}
MARKS = {"ONNX": [pytest.mark.bridges]}
every_export = pytest.mark.parametrize(
    "export", [pytest.param(e, marks=MARKS.get(name, ()), id=name) for name, e in EXPORTS.items()]
)


def flat(batch_size=None):
    return keras.Sequential(
        [
            keras.Input((6, 6, 3), batch_size=batch_size),
            layers.Conv2D(8, 3, activation="relu"),
            layers.Flatten(),
            layers.Dense(4),
        ],
        name="flat",
    )


def streaming(**settings):
    """A recurrent layer that goes on where the last call ended."""
    x = keras.Input((4, 3), batch_size=1, name="window")
    gru = layers.GRU(6, stateful=True, return_sequences=True, **settings)
    return keras.Model(x, layers.Dense(2)(gru(x)), name="streaming")


# Batch sizes -----------------------------------------------------------------------


def test_a_fixed_batch_size_is_kept_everywhere(tmp_path, rng):
    model = flat(2)
    small = kn.prune(model, kn.Magnitude(), ratio=0.5, compensate=None, verbose=0)
    x = rng.normal(size=(5, 6, 6, 3)).astype("float32")  # no multiple of two
    done = kn.export_tflite(small, tmp_path / "net.tflite", "int8", x, verbose=0)
    assert (done.batch_size, done.float_operations) == (2, {})
    assert not SHAPES & set(done.operations)
    want = small.predict(x[:4], verbose=0, batch_size=2)
    got = runner(done.path)({"input": x[:4]})["output_0"]
    np.testing.assert_allclose(got, want, atol=0.1 * np.abs(want).max())
    saved = kn.export_serving(small, tmp_path / "net", warmup=x, check_data=x, verbose=0)
    signature = tf.saved_model.load(str(saved.path)).signatures["serving_default"]
    assert signature.structured_input_signature[1]["input"].shape == (2, 6, 6, 3)
    _check_requests(saved.path, x)
    assert kn.benchmark(small, done.path, rounds=1, repeats=1).batch_size == 2


@pytest.mark.bridges
def test_batch_sizes_cross_the_bridges(tmp_path, rng):
    import onnxruntime

    def shape_in_file():
        (given,) = onnxruntime.InferenceSession(str(tmp_path / "net.onnx")).get_inputs()
        return given.shape

    x = rng.normal(size=(5, 6, 6, 3)).astype("float32")
    kn.export_onnx(flat(2), tmp_path / "net.onnx", check_data=x, verbose=0)
    assert shape_in_file() == [2, 6, 6, 3]
    kn.export_onnx(flat(), tmp_path / "net.onnx", batch_size=3, verbose=0)
    assert shape_in_file() == [3, 6, 6, 3]
    assert kn.to_tf_keras(flat(2)).input_shape == (2, 6, 6, 3)


def _check_requests(folder, x):
    from tensorflow_serving.apis import prediction_log_pb2

    file = str(folder / "assets.extra" / "tf_serving_warmup_requests")
    arrays = []
    for record in tf.data.TFRecordDataset(file):
        log = prediction_log_pb2.PredictionLog.FromString(record.numpy()).predict_log
        arrays.append(tf.make_ndarray(log.request.inputs["input"]))
    np.testing.assert_array_equal(np.concatenate(arrays), x[:4])


def test_a_batch_size_can_be_asked_for(tmp_path, rng):
    model = flat()
    opened = kn.export_tflite(model, tmp_path / "open.tflite", verbose=0)
    assert set(opened.operations) >= SHAPES
    assert opened.batch_size is None
    for kind in (None, "int8"):
        x = rng.normal(size=(8, 6, 6, 3))
        done = kn.export_tflite(model, tmp_path / "one.tflite", kind, x, batch_size=1, verbose=0)
        assert done.batch_size == 1
        assert not SHAPES & set(done.operations)
    with pytest.raises(ValueError, match="Expected `batch_size` 2, to which"):
        kn.export_tflite(flat(2), tmp_path / "net.tflite", batch_size=1)
    with pytest.raises(ValueError, match="`batch_size` to be an integer of at least 1"):
        kn.export_tflite(model, tmp_path / "net.tflite", batch_size=0)
    with pytest.raises(ValueError, match=r"of one batch size\. Received: 1, 4"):
        kn.benchmark(tmp_path / "one.tflite", batch_size=4)


@every_export
def test_a_reshape_bound_to_its_batch_is_exported(export, tmp_path):
    x = keras.Input((4, 3), batch_size=2)
    export(keras.Model(x, layers.Dense(2)(ops.reshape(x, (x.shape[0], -1)))), tmp_path)


# States ----------------------------------------------------------------------------


def test_stateful_layers_stream(tmp_path, rng):
    """Windows one after the other, in the file and in Keras; the model stays where it was."""
    model = streaming()
    windows = rng.normal(size=(5, 4, 3)).astype("float32")
    model(windows[:1])  # some state
    before = model.layers[1].states[0].numpy()
    assert np.abs(before).max() > 0
    lite = kn.export_tflite(model, tmp_path / "net.tflite", check_data=windows, verbose=0)
    saved = kn.export_serving(model, tmp_path / "net", check_data=windows, verbose=0)
    np.testing.assert_array_equal(model.layers[1].states[0], before)
    model.layers[1].reset_state()
    want = np.concatenate([model(windows[i : i + 1]) for i in range(5)])
    got = runner(lite.path)({"window": windows})["output_0"]
    np.testing.assert_allclose(got, want, atol=1e-5)
    function = tf.saved_model.load(str(saved.path)).signatures["serving_default"]
    parts = [function(window=tf.constant(windows[i : i + 1]))["output_0"] for i in range(5)]
    np.testing.assert_allclose(np.concatenate(parts), want, atol=1e-5)
    with pytest.raises(kn.ExportError, match=r"'gru.*keeps its state"):
        kn.export_onnx(model, tmp_path / "net.onnx")


@keras.saving.register_keras_serializable("tests")
class Counting(layers.Layer):
    """Adds how often it was called: a state that no layer of Keras keeps."""

    def build(self, shape):
        self.calls = self.add_weight(shape=(), initializer="zeros", trainable=False, name="calls")

    def call(self, x):
        return x + self.calls.assign_add(1.0)


@every_export
@pytest.mark.parametrize("batch", [None, 2])
def test_states_of_other_layers_are_put_back_and_found_out(export, batch, tmp_path):
    """What is written counts on as the model does, or nothing is written."""
    inputs = keras.Input((3,), batch_size=batch, name="x")
    model = keras.Sequential([inputs, layers.Dense(2), Counting(name="counting")])
    counting = model.get_layer("counting")
    counting.calls.assign(3)
    if export is EXPORTS["ONNX"] or (export is EXPORTS["TFLite"] and batch is None):
        with pytest.raises(kn.ExportError, match="does not compute what the Keras model computes"):
            export(model, tmp_path)
        assert not list(tmp_path.iterdir())
    else:
        done = export(model, tmp_path)
        assert done.agreement.relative < 1e-6
    assert float(counting.calls) == 3
    if export is EXPORTS["SavedModel"]:
        function = tf.saved_model.load(str(done.path)).signatures["serving_default"]
        got = [float(function(x=tf.zeros((2, 3)))["output_0"][0, 0]) for _ in range(3)]
        assert got == [4, 5, 6]


# Inputs and outputs ----------------------------------------------------------------


def heads():
    """Logits, indices, flags, counts; an input that is an output; one tensor twice."""
    x = keras.Input((6,), name="x")
    h = layers.Dense(5)(x)
    outputs = {
        "logits": h,
        "again": h,
        "input": x,
        "class": ops.argmax(h, -1),
        "least": ops.argmin(h, -1, keepdims=True),
        "of_all": ops.argmax(ops.reshape(h, (-1, 5)), axis=1),
        "positive": h > 0,
        "count": ops.cast(ops.sum(ops.cast(h > 0, "float32"), -1), "int32"),
    }
    return keras.Model(x, outputs, name="heads")


@every_export
def test_outputs_of_any_kind(export, tmp_path, rng):
    model = heads()
    x = rng.normal(size=(40, 6)).astype("float32")
    done = export(model, tmp_path, check_data=x)
    rows = {row.name: row for row in done.agreement.outputs}
    assert set(rows) == set(model.output)
    assert all(row.relative < 1e-5 for row in rows.values())
    assert rows["class"].top1 == rows["positive"].top1 == 1
    if export is EXPORTS["TFLite"]:
        got = runner(done.path)({"x": x})
        np.testing.assert_array_equal(got["class"], model(x)["class"])


def test_wrong_classes_are_found_out(tmp_path, rng, monkeypatch):
    """A class is right or wrong: 1 in place of 2 is not half as bad as 0."""
    from keras_nisp.export import tflite

    model, other = heads(), heads()
    other.set_weights([w + 1e-3 * rng.normal(size=w.shape) for w in model.get_weights()])
    model = keras.Model(model.input, model.output["class"])
    content = convert(keras.Model(other.input, other.output["class"]))
    monkeypatch.setattr(tflite, "convert", lambda *_, **__: content)
    x = rng.normal(size=(256, 6)).astype("float32") * 1e-3
    with pytest.raises(kn.ExportError, match="does not compute what the Keras model computes"):
        kn.export_tflite(model, tmp_path / "net.tflite", check_data=x)


def windows(inner, mask=False):
    """A layer on each of any number of steps."""
    if mask:
        words = keras.Input((None,), dtype="int32", name="words")
        x = layers.Embedding(9, 4, mask_zero=True)(words)
        return keras.Model(words, layers.TimeDistributed(inner)(x))
    x = keras.Input((None, 6, 6, 3), name="frames")
    return keras.Model(x, layers.GlobalAveragePooling1D()(layers.TimeDistributed(inner)(x)))


def network_of_frames():
    x = keras.Input((6, 6, 3))
    return keras.Model(x, layers.GlobalMaxPooling2D()(layers.Conv2D(4, 3)(x)))


@every_export
def test_layers_over_an_open_number_of_steps(export, tmp_path, rng):
    frames = rng.normal(size=(6, 5, 6, 6, 3)).astype("float32")
    model = windows(network_of_frames())
    assert export(model, tmp_path, check_data=frames).agreement.relative < 1e-5
    words = rng.integers(0, 9, (6, 5))
    masked = windows(layers.Dense(3), mask=True)
    folder = tmp_path / "masked"
    folder.mkdir()
    assert export(masked, folder, check_data=words).agreement.relative < 1e-5


@pytest.mark.skipif(keras.__version__.startswith("3.12."), reason="Keras 3.12 cannot build it")
def test_words_go_through(tmp_path):
    """A key that is passed on, and words that are looked up, by the keys of the inputs."""
    key = keras.Input((1,), dtype="string", name="key")
    word = keras.Input((1,), dtype="string", name="word")
    x = layers.Embedding(4, 3)(layers.StringLookup(vocabulary=["a", "b"])(word))
    outputs = {"key": key, "score": layers.Dense(2)(layers.Flatten()(x))}
    model = keras.Model({"key": key, "word": word}, outputs, name="words")
    data = {"key": np.array([["k1"], ["k2"]] * 4), "word": np.array([["a"], ["c"]] * 4)}
    saved = kn.export_serving(model, tmp_path / "net", check_data=data, verbose=0)
    function = tf.saved_model.load(str(saved.path)).signatures["serving_default"]
    got = function(**{name: tf.constant(array) for name, array in data.items()})
    assert got["key"].numpy().tolist()[:2] == [[b"k1"], [b"k2"]]
    lite = kn.export_tflite(model, tmp_path / "net.tflite", check_data=data, verbose=0)
    assert lite.agreement.relative < 1e-5
    with pytest.raises(kn.ExportError, match="'words' takes or gives words"):
        kn.export_onnx(model, tmp_path / "net.onnx")


# Quantization ----------------------------------------------------------------------


@pytest.mark.parametrize("name", [None, "float32", "float16", "dynamic", "int8"])
def test_every_spelling_of_a_quantization(name, tmp_path, rng):
    x = rng.normal(size=(8, 6, 6, 3))
    done = kn.export_tflite(flat(1), tmp_path / "net.tflite", name, x, verbose=0)
    assert done.quantization == (None if name == "float32" else name)
    assert str(done).startswith(f"{done.path}: {name or 'float32'}, ")


def spread():
    """One output of ordinary numbers; one that int8 levels, for its values are far apart."""
    x = keras.Input((4,), name="x")
    ordinary = layers.Dense(1, name="ordinary")(x)
    levelled = ops.tanh(1e4 * layers.Dense(1, use_bias=False, name="steep")(x))
    return keras.Model(x, {"ordinary": ordinary, "levelled": levelled}, name="spread")


def test_outputs_without_top1_that_change_wholly_are_said_aloud(tmp_path, rng):
    model = spread()
    x = rng.normal(size=(64, 4)).astype("float32")
    x[1:] *= 1e-3
    with pytest.warns(UserWarning, match=r"changes the answers of model 'spread' in 'levelled':"):
        done = kn.export_tflite(model, tmp_path / "net.tflite", "int8", x, verbose=0)
    worst, good = done.agreement.outputs
    assert (worst.name, good.name) == ("levelled", "ordinary")
    assert worst.relative > 0.5 > good.relative
    assert "in 'levelled'" in str(done)


def test_operations_that_stay_float_are_named(tmp_path, rng):
    model = keras.Sequential(
        [keras.Input((6, 6, 3)), layers.Conv2D(4, 3), layers.ELU(), layers.LayerNormalization()]
    )
    x = rng.normal(size=(16, 6, 6, 3)).astype("float32")
    with pytest.warns(UserWarning, match=r"computes in float .*: .*ELU.*integers alone"):
        done = kn.export_tflite(model, tmp_path / "net.tflite", "int8", x, verbose=0)
    assert done.float_operations["ELU"] == 1
    assert "int8 (in float: " in str(done)
    plain = kn.export_tflite(
        residual(), tmp_path / "net.tflite", "int8", rng.normal(size=(8, 11, 11, 3)), verbose=0
    )
    assert plain.float_operations == {}
    assert plain.operations["CONV_2D"] == 5


# What is no model, or no longer one ------------------------------------------------


class Subclassed(keras.Model):
    def call(self, x):
        return x


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (None, "is None until `fit` has ended"),
        (kn.NISPPruner(kn.Magnitude(), ratio=0.5), "Pass its `pruned_model`"),
        ("net.keras", "Load it first"),
        (Subclassed(), "as_functional"),
        (keras.Sequential([layers.Dense(2)]), "is not built"),
    ],
    ids=["None", "pruner", "path", "subclassed", "unbuilt"],
)
def test_what_is_no_model_is_refused(model, message, tmp_path):
    for attempt in (*EXPORTS.values(), lambda model, _: kn.to_tf_keras(model)):
        with pytest.raises((TypeError, ValueError), match=message):
            attempt(model, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_diverged_weights_are_refused(value, tmp_path):
    model = flat()
    kernel, bias = model.layers[-1].get_weights()
    kernel[0, 0] = value
    model.layers[-1].set_weights([kernel, bias])
    for attempt in (*EXPORTS.values(), lambda model, _: kn.to_tf_keras(model)):
        with pytest.raises(kn.ExportError, match=r"dense.*/kernel' .*holds NaN or infinity \(1 of"):
            attempt(model, tmp_path)
    assert list(tmp_path.iterdir()) == []


@every_export
def test_outputs_that_are_not_finite_are_refused(export, tmp_path):
    x = keras.Input((4,))
    model = keras.Model(x, ops.log(ops.relu(layers.Dense(3)(x))))
    with pytest.raises(kn.ExportError, match="is not finite on the samples"):
        export(model, tmp_path)
    assert not any(p.is_file() for p in tmp_path.rglob("*"))


def test_weights_too_large_for_float16_are_refused(tmp_path):
    x = keras.Input((4,))
    large = keras.Model(x, 1e5 * layers.Dense(3, use_bias=False)(x))
    large.layers[1].kernel.assign(1e6 * large.layers[1].kernel)
    with pytest.raises(kn.ExportError, match="does not compute what the Keras"):
        kn.export_tflite(large, tmp_path / "net.tflite", "float16")
    assert not any(p.is_file() for p in tmp_path.rglob("*"))


@pytest.mark.parametrize("export", [EXPORTS["TFLite"], EXPORTS["SavedModel"]])
@pytest.mark.parametrize(
    ("equation", "shape"),
    [("a,bc->acb", (7, 5)), ("ab,bcd->abcd", (5, 7, 3)), ("...b,cd->...cbd", (7, 5, 3))],
)
def test_einsums_that_add_nothing_up(export, equation, shape, tmp_path):
    inputs = keras.Input((5,))
    x = ops.sum(inputs, 1) if equation[1] == "," else inputs
    layer = layers.EinsumDense(equation, shape, "tanh", bias_axes="c", bias_initializer="ones")
    # Of a call with `training`, as a graph of a converted layer has it.
    y = layers.Flatten()(layer(x, training=True))
    kernel = np.random.default_rng(0).normal(size=layer.kernel.shape).astype("float32")
    written = layers.Flatten()(ops.einsum(equation, x, kernel))
    model = keras.Model(inputs, [layers.Dense(2)(y), layers.Dense(2)(written)])
    assert export(model, tmp_path).agreement.relative < 1e-5  # of the worst output
