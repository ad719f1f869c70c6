"""Exports: files that another process runs, with the numbers of the Keras model."""

import functools
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from fresh_process import in_fresh_process
from nets import branches, grouped, nested, randomise, residual, saturating, squeeze_excite

import keras_nisp as kn
from keras_nisp.export import serving, tflite
from keras_nisp.export.agreement import check_samples, compare
from keras_nisp.export.interpreter import load_interpreter
from keras_nisp.export.signature import Signature
from keras_nisp.export.tflite import runner

NETS = [residual, branches, squeeze_excite, grouped, nested]


@functools.cache
def pruned(build):
    model = build()
    randomise(model)
    return kn.prune(model, kn.Random(), ratio=0.4, verbose=0)


def samples_for(model, count=16):
    rng = np.random.default_rng(1)
    return [rng.normal(size=(count, *t.shape[1:])).astype("float32") for t in model.inputs]


def two_outputs():
    """Dicts of inputs and outputs, whose order is not that of the layers."""
    a, b = keras.Input((6,), name="b_side"), keras.Input((4,), name="a_side")
    x = keras.layers.Concatenate()([keras.layers.Dense(5)(a), b])
    outputs = {"score": keras.layers.Dense(3)(x), "parts": {"first": keras.layers.Dense(2)(x)}}
    return keras.Model({"b_side": a, "a_side": b}, outputs, name="two")


# Names -----------------------------------------------------------------------------


def test_names_do_not_depend_on_how_many_layers_were_made_before():
    for _ in range(2):
        inputs = [keras.Input((3,)), keras.Input((3,))]
        signature = Signature(keras.Model(inputs, keras.layers.Add()(inputs)))
        assert signature.inputs == ["input_0", "input_1"]
        assert signature.outputs == ["output_0"]
        alone = keras.Sequential([keras.Input((3,)), keras.layers.ReLU()])
        assert Signature(alone).inputs == ["input"]


def test_names_of_users_and_dicts_are_kept():
    signature = Signature(two_outputs())
    assert (signature.inputs, signature.outputs) == (["a_side", "b_side"], ["parts_first", "score"])
    named = keras.Sequential([keras.Input((3,), name="my-image"), keras.layers.Dense(2)])
    assert Signature(named).inputs == ["my_image"]


# TF Serving ------------------------------------------------------------------------

PREDICT = """
import numpy as np, tensorflow as tf
data = dict(np.load(sys.argv[2]))
function = tf.saved_model.load(sys.argv[1]).signatures["serving_default"]
inputs = {k: tf.constant(v) for k, v in data.items() if not k.startswith("want_")}
outputs = function(**inputs)
for name, value in outputs.items():
    np.testing.assert_allclose(value, data["want_" + name], rtol=1e-4, atol=1e-5)
assert len(outputs) == len(data) - len(inputs)
"""


@pytest.mark.parametrize("build", [residual, two_outputs])
def test_saved_models_predict_the_same_with_tensorflow_alone(build, tmp_path):
    model = pruned(build) if build is residual else build()
    export = kn.export_serving(model, tmp_path / "net", verbose=0)
    signature, inputs = Signature(model), samples_for(model)
    expected = signature(*map(tf.constant, inputs))
    np.savez(
        tmp_path / "data.npz",
        **dict(zip(signature.inputs, inputs, strict=True)),
        **{f"want_{name}": value for name, value in expected.items()},
    )
    without = ("keras", "tf_keras", "keras_nisp")
    in_fresh_process(PREDICT, export.path, tmp_path / "data.npz", without=without)


def test_weights_are_stored_once(tmp_path):
    model = keras.Sequential([keras.Input((512,)), keras.layers.Dense(512, name="large")])
    export = kn.export_serving(model, tmp_path / "net", verbose=0)
    size = sum(file.stat().st_size for file in export.path.glob("variables/*.data*"))
    assert size < 1.02 * 4 * model.count_params()
    assert export.bytes == sum(f.stat().st_size for f in export.path.rglob("*") if f.is_file())


def test_versions_count_up_and_are_never_replaced(tmp_path):
    model, folder = residual(), tmp_path / "models" / "net"
    (folder / "notes").mkdir(parents=True)  # which is no version
    versions = [kn.export_serving(model, folder, v, verbose=0).version for v in (None, 7, None)]
    assert versions == [1, 7, 8]
    with pytest.raises(FileExistsError, match="Version 7 exists"):
        kn.export_serving(model, folder, 7)
    with pytest.raises(ValueError, match="`version` to be a number"):
        kn.export_serving(model, folder, "latest")
    assert sorted(p.name for p in folder.iterdir()) == ["1", "7", "8", "notes"]


def test_a_server_never_sees_half_a_version(tmp_path, monkeypatch):
    """Whatever fails, no folder with a number appears, and nothing else stays."""
    seen = []

    def failing(folder, *_):
        Path(folder, "saved_model.pb").write_text("half")
        seen.extend(p.name for p in (tmp_path / "net").iterdir())
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(serving, "write_saved_model", failing)
    with pytest.raises(OSError, match="No space left"):
        kn.export_serving(residual(), tmp_path / "net")
    assert not any(name.isdecimal() for name in seen)
    assert list((tmp_path / "net").iterdir()) == []


def test_preprocessing_and_top_k(tmp_path, rng):
    model = keras.Sequential(
        [keras.Input((8, 8, 1)), keras.layers.Flatten(), keras.layers.Dense(4, name="logits")]
    )
    clients = keras.Sequential(
        [
            keras.Input((None, None, 1), dtype="uint8", name="photo"),
            keras.layers.Resizing(8, 8),
            keras.layers.Rescaling(1 / 255),
        ]
    )
    photos = rng.integers(0, 255, (5, 20, 12, 1)).astype("uint8")
    labels = ["cat", "dog", "ox", "bee"]
    arguments = {"preprocessing": clients, "top_k": 3, "labels": labels, "warmup": photos}
    export = kn.export_serving(model, tmp_path / "net", verbose=0, **arguments)
    assert set(export.signatures) == {"serving_default", "model", "top_k"}
    loaded = tf.saved_model.load(str(export.path)).signatures
    logits = loaded["serving_default"](photo=tf.constant(photos))["output_0"].numpy()
    both = keras.Model(clients.inputs, model(clients.outputs[0]))
    np.testing.assert_allclose(logits, both.predict(photos, verbose=0), rtol=1e-4, atol=1e-5)
    found = loaded["top_k"](photo=tf.constant(photos))
    order = np.argsort(-logits, -1)[:, :3]
    assert [[name.decode() for name in row] for row in found["classes"].numpy()] == [
        [labels[i] for i in row] for row in order
    ]
    probabilities = keras.ops.softmax(logits).numpy()
    np.testing.assert_allclose(
        found["scores"], np.take_along_axis(probabilities, order, -1), rtol=1e-4
    )
    _check_warmup(export.path, photos)


def _check_warmup(folder, photos):
    from tensorflow_serving.apis import prediction_log_pb2

    file = str(folder / "assets.extra" / "tf_serving_warmup_requests")
    records = [r.numpy() for r in tf.data.TFRecordDataset(file)]
    assert len(records) == len(photos)
    for record, photo in zip(records, photos, strict=True):
        request = prediction_log_pb2.PredictionLog.FromString(record).predict_log.request
        assert (request.model_spec.name, request.model_spec.signature_name) == (
            "net",
            "serving_default",
        )
        np.testing.assert_array_equal(tf.make_ndarray(request.inputs["photo"]), photo[None])


@pytest.mark.parametrize("last", [[], [keras.layers.Activation("linear", dtype="float32")]])
@pytest.mark.parametrize("ending", ["softmax", "sigmoid"])
def test_probabilities_are_not_normalised_twice(tmp_path, ending, last):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, activation=ending), *last])
    export = kn.export_serving(model, tmp_path / "net", top_k=3, verbose=0)
    x = tf.constant(np.random.default_rng(0).normal(size=(6, 4)), tf.float32)
    scores = tf.saved_model.load(str(export.path)).signatures["top_k"](input=x)["scores"]
    np.testing.assert_allclose(scores, -np.sort(-model(x).numpy(), -1), rtol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"top_k": 9}, "`top_k` from 1 to 4"),
        ({"labels": ["a"]}, "Expected `top_k` with `labels`"),
        ({"top_k": 1, "labels": ["a"]}, "Expected 4 `labels`. Received: 1"),
        (
            {"preprocessing": keras.Sequential([keras.Input((2,)), keras.layers.ReLU()])},
            "to give what model",
        ),
        ({"warmup": np.zeros((3, 2, 2, 3))}, "Expected calibration data of shape"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_written(arguments, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        kn.export_serving(residual(), tmp_path / "net", **arguments)
    assert list(tmp_path.iterdir()) == []


def test_vocabularies_are_exported_too(tmp_path):
    words = keras.layers.StringLookup(vocabulary=["red", "green"])
    text = keras.Input((), dtype="string", name="word")
    before = keras.Model(text, keras.ops.expand_dims(keras.ops.cast(words(text), "float32"), -1))
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(2)])
    export = kn.export_serving(model, tmp_path / "net", preprocessing=before, verbose=0)
    function = tf.saved_model.load(str(export.path)).signatures["serving_default"]
    got = function(word=tf.constant(["green", "blue"]))["output_0"]
    np.testing.assert_allclose(got, model(np.array([[2.0], [0.0]])), rtol=1e-5)


# TFLite ----------------------------------------------------------------------------

INTERPRET = """
import numpy as np
from ai_edge_litert.interpreter import Interpreter
data = np.load(sys.argv[2])
run = Interpreter(model_path=sys.argv[1]).get_signature_runner("serving_default")
got = np.concatenate([run(input=x[None])["output_0"] for x in data["x"]])
np.testing.assert_allclose(got, data["want"], rtol=1e-3, atol=1e-4)
"""


def test_tflite_files_run_without_tensorflow(tmp_path):
    model = pruned(residual)
    (x,) = samples_for(model)
    np.savez(tmp_path / "data.npz", x=x, want=model.predict(x, verbose=0))
    export = kn.export_tflite(model, tmp_path / "net.tflite", verbose=0)
    without = ("tensorflow", "keras", "keras_nisp")
    in_fresh_process(INTERPRET, export.path, tmp_path / "data.npz", without=without)


@pytest.mark.filterwarnings(
    "ignore:Quantization changes the answers"
)  # random nets are close calls
@pytest.mark.parametrize(
    ("quantization", "build"),
    [(kind, build) for kind in (None, "int8") for build in NETS]
    + [(kind, build) for kind in ("float16", "dynamic") for build in (residual, squeeze_excite)],
)
def test_every_kind_agrees(build, quantization, tmp_path):
    model = pruned(build)
    data = samples_for(model, 48)
    export = kn.export_tflite(
        model, tmp_path / "net.tflite", quantization, data[0] if len(data) == 1 else data, verbose=0
    )
    limit = {None: 1e-5, "float16": 5e-3, "dynamic": 0.1, "int8": 0.2}[quantization]
    assert export.agreement.relative < limit
    assert export.agreement.top1 >= (1.0 if quantization is None else 0.7)
    assert export.bytes == export.path.stat().st_size
    assert export.gzip_bytes < export.bytes
    assert not export.agreement.random


def test_int8_is_int8_throughout(tmp_path):
    model = pruned(residual)
    kn.export_tflite(model, tmp_path / "net.tflite", "int8", samples_for(model)[0], verbose=0)
    interpreter = load_interpreter(tmp_path / "net.tflite")
    details = interpreter.get_input_details() + interpreter.get_output_details()
    assert {np.dtype(d["dtype"]) for d in details} == {np.dtype("int8")}
    kinds = {np.dtype(d["dtype"]).name for d in interpreter.get_tensor_details()}
    assert "float32" not in kinds


def test_answers_that_change_are_said_aloud(tmp_path, rng):
    """Two logits that differ by less than a step of int8."""
    inputs = keras.Input((4,))
    x = keras.layers.Dense(2, name="head")(inputs)
    model = keras.Model(inputs, x)
    kernel = rng.normal(size=(4, 1)) + 1e-4 * rng.normal(size=(4, 2))
    model.get_layer("head").set_weights([kernel, np.zeros(2)])
    data = rng.normal(size=(64, 4)).astype("float32")
    with pytest.warns(UserWarning, match="changes the answers of model"):
        export = kn.export_tflite(model, tmp_path / "net.tflite", "int8", data, verbose=0)
    assert export.agreement.top1 < 0.9
    kn.export_tflite(model, tmp_path / "net.tflite", check_data=data, verbose=0)  # no warning


def test_answers_that_all_change_are_said_aloud_too(tmp_path, rng, monkeypatch):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    content = tflite.convert(model)
    model.layers[0].set_weights([-w for w in model.layers[0].get_weights()])
    monkeypatch.setattr(tflite, "convert", lambda *_, **__: content)
    data = rng.normal(size=(16, 4)).astype("float32")
    with pytest.warns(UserWarning, match="changes the answers of model"):
        export = kn.export_tflite(model, tmp_path / "net.tflite", "dynamic", check_data=data)
    assert export.agreement.top1 == 0


def test_inputs_go_by_name_not_by_position(tmp_path, rng):
    model = two_outputs()
    kn.export_tflite(model, tmp_path / "net.tflite", verbose=0)
    values = {"a_side": rng.normal(size=(3, 4)), "b_side": rng.normal(size=(3, 6))}
    got = runner(tmp_path / "net.tflite")({k: v.astype("float32") for k, v in values.items()})
    want = model({k: tf.constant(v, tf.float32) for k, v in values.items()})
    np.testing.assert_allclose(got["score"], want["score"], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(got["parts_first"], want["parts"]["first"], rtol=1e-4, atol=1e-5)


def test_open_sizes_that_a_graph_does_not_take_are_named(tmp_path):
    inputs = keras.Input((None, None, 3), name="photo")
    x = keras.layers.Conv2D(4, 1)(inputs)
    x = keras.layers.UpSampling2D(interpolation="bilinear")(x)
    model = keras.Model(inputs, x)
    x = np.ones((2, 8, 8, 3), "float32")
    for export, target in ((kn.export_tflite, "m.tflite"), (kn.export_serving, "served")):
        with pytest.raises(kn.ExportError, match=r"UpSampling2D.*Sizes of 'photo' are open"):
            export(model, tmp_path / target, check_data=x)
        assert not list((tmp_path / target).rglob("*"))


def test_open_sizes_stay_open(tmp_path, rng):
    inputs = keras.Input((None, None, 3), name="photo")
    x = keras.layers.Conv2D(4, 3, activation="relu")(inputs)
    model = keras.Model(inputs, keras.layers.GlobalAveragePooling2D()(x))
    kn.export_tflite(model, tmp_path / "net.tflite", verbose=0)
    kn.export_serving(model, tmp_path / "net", verbose=0)
    run = runner(tmp_path / "net.tflite")
    for size in ((2, 9, 8, 3), (3, 20, 31, 3)):
        photos = rng.normal(size=size).astype("float32")
        np.testing.assert_allclose(
            run({"photo": photos})["output_0"], model(photos), rtol=1e-4, atol=1e-5
        )


@pytest.mark.bridges
def test_open_sizes_stay_open_in_onnx(tmp_path):
    import onnxruntime

    inputs = keras.Input((None, None, 3), name="photo")
    model = keras.Model(inputs, keras.layers.GlobalAveragePooling2D()(inputs))
    kn.export_onnx(model, tmp_path / "net.onnx", verbose=0)
    (given,) = onnxruntime.InferenceSession(str(tmp_path / "net.onnx")).get_inputs()
    assert all(isinstance(size, str) for size in given.shape[:3])


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_mixed_precision_is_exported_in_float32(policy, tmp_path):
    keras.mixed_precision.set_global_policy(policy)
    try:
        model = squeeze_excite()
    finally:
        keras.mixed_precision.set_global_policy("float32")
    before = model.get_weights()
    export = kn.export_tflite(model, tmp_path / "net.tflite", verbose=0)
    assert export.agreement.relative < 0.05
    assert model.layers[1].compute_dtype == policy.removeprefix("mixed_")
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_recurrent_layers(tmp_path, rng):
    def model(**settings):
        return keras.Sequential(
            [
                keras.Input((6, 4)),
                keras.layers.Bidirectional(keras.layers.LSTM(5, **settings)),
                keras.layers.Dense(3),
            ]
        )

    data = rng.normal(size=(20, 6, 4)).astype("float32")
    path = tmp_path / "net.tflite"
    assert kn.export_tflite(model(), path, None, data, verbose=0).agreement.relative < 1e-5
    with pytest.raises(kn.ExportError, match=r"loop over time.*unroll=True"):
        kn.export_tflite(model(), path, "int8", data)
    unrolled = kn.export_tflite(model(unroll=True), path, "int8", data, verbose=0)
    assert unrolled.agreement.relative < 0.2


def test_a_file_that_computes_something_else_is_not_written(tmp_path, monkeypatch):
    """The check can fail: a converter that takes other weights is found out."""
    model, path = pruned(residual), tmp_path / "net.tflite"
    path.write_bytes(b"the old file")
    wrong = keras.models.clone_model(model)
    content = tflite.convert(wrong)
    monkeypatch.setattr(tflite, "convert", lambda *_, **__: content)
    with pytest.raises(kn.ExportError, match="does not compute what the Keras model computes"):
        kn.export_tflite(model, path)
    assert path.read_bytes() == b"the old file"
    assert list(tmp_path.iterdir()) == [path]


def rounded_otherwise(model):
    for weight in model.weights:
        weight.assign(weight * (1 + 1e-7))


@pytest.mark.parametrize("words", [0, 5])
def test_networks_that_amplify_rounding_can_be_exported(words, tmp_path, monkeypatch):
    model, other = saturating(1.0, words), saturating(1.0, words)
    rounded_otherwise(other)
    content = tflite.convert(other)
    monkeypatch.setattr(tflite, "convert", lambda *_, **__: content)
    export = kn.export_tflite(model, tmp_path / "net.tflite", verbose=0)
    assert export.agreement.relative > 1e-4
    calm = saturating(0.1, words)  # a difference as large is not forgiven elsewhere
    with pytest.raises(kn.ExportError, match=r"more than 0\.0001 of the scale"):
        kn.export_tflite(calm, tmp_path / "calm.tflite")


def test_what_tflite_has_no_operation_for_is_named(tmp_path, capfd):
    inputs = keras.Input((8,))
    model = keras.Model(inputs, keras.ops.erfinv(inputs), name="odd")
    with pytest.raises(kn.ExportError, match="'odd': there is no TFLite operation for Erfinv"):
        kn.export_tflite(model, tmp_path / "net.tflite")
    assert list(tmp_path.iterdir()) == []


def test_nothing_but_the_outcome_is_printed(tmp_path, capsys):
    export = kn.export_tflite(residual(), tmp_path / "net.tflite")
    assert capsys.readouterr().out == f"{export}\n"
    export = kn.export_serving(residual(), tmp_path / "net")
    assert capsys.readouterr().out == f"{export}\n"


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("net.lite", {}, r"ends in '\.tflite'"),
        ("net.tflite", {"quantization": "int4"}, "`quantization` to be None or one of"),
        ("net.tflite", {"quantization": "int8"}, "Expected `calibration` for int8"),
    ],
)
def test_wrong_arguments_of_tflite(name, arguments, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        kn.export_tflite(residual(), tmp_path / name, **arguments)
    with pytest.raises(FileNotFoundError, match="make it first"):
        kn.export_tflite(residual(), tmp_path / "missing" / "net.tflite")


@pytest.mark.filterwarnings(
    "ignore:__array__ implementation:DeprecationWarning",
    "ignore:.*does not have a `quantize` method:UserWarning",  # before Keras 3.16
)
def test_models_that_keras_quantized_are_refused(tmp_path):
    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(8, name="hidden")])
    model.quantize("int8")
    for attempt in (
        lambda: kn.export_tflite(model, tmp_path / "net.tflite"),
        lambda: kn.export_serving(model, tmp_path / "net"),
        lambda: kn.plan_pruning(model, kn.Magnitude(), ratio=0.5),
    ):
        with pytest.raises(TypeError, match=r"quantized by Keras.*'hidden'"):
            attempt()


# ONNX ------------------------------------------------------------------------------

ONNX = """
import numpy as np, onnxruntime
data, session = np.load(sys.argv[2]), onnxruntime.InferenceSession(sys.argv[1])
(got,) = session.run(["output_0"], {"input": data["x"]})
np.testing.assert_allclose(got, data["want"], rtol=1e-3, atol=1e-4)
"""


@pytest.mark.bridges
@pytest.mark.parametrize("build", [residual, squeeze_excite])
def test_onnx_files_run_without_tensorflow(build, tmp_path):
    model = pruned(build)
    (x,) = samples_for(model)
    np.savez(tmp_path / "data.npz", x=x, want=model.predict(x, verbose=0))
    export = kn.export_onnx(model, tmp_path / "net.onnx", check_data=x, verbose=0)
    assert export.agreement.relative < 1e-5
    without = ("tensorflow", "keras", "keras_nisp")
    in_fresh_process(ONNX, export.path, tmp_path / "data.npz", without=without)


@pytest.mark.bridges
def test_normalization_survives_onnx(tmp_path, rng):
    """tf2onnx turns its constants into inputs, so a `Rescaling` replaces it."""
    model = keras.Sequential(
        [
            keras.Input((6, 6, 3)),
            keras.layers.Normalization(mean=[0.2, 0.4, 0.5], variance=[1.0, 0.5, 4.0]),
            keras.layers.Conv2D(4, 3),
        ]
    )
    x = rng.normal(size=(8, 6, 6, 3))
    export = kn.export_onnx(model, tmp_path / "net.onnx", check_data=x, verbose=0)
    assert export.agreement.relative < 1e-5


@pytest.mark.bridges
@pytest.mark.skipif(keras.__version__ < "3.13", reason="Keras 3.12 cannot build it")
def test_constants_that_onnx_loses_are_named(tmp_path):
    along_rows = keras.Sequential(
        [
            keras.Input((3, 3, 2)),
            keras.layers.Normalization(axis=1, mean=[0.2, 0.4, 0.5], variance=[1.0, 0.5, 4.0]),
        ]
    )
    path = tmp_path / "rows.onnx"
    with pytest.raises(kn.ExportError, match="made inputs of the constants"):
        kn.export_onnx(along_rows, path)
    assert not path.exists()


TOOL = """
from tensorflow.python.tools import saved_model_cli
try:
    saved_model_cli.main()
except SystemExit as stop:
    assert not stop.code
"""


def test_the_command_of_tensorflow_reads_it(tmp_path):
    """`saved_model_cli`, which knows nothing of Keras, shows the signature and runs it."""
    model = two_outputs()
    export = kn.export_serving(model, tmp_path / "net", verbose=0)
    arrays = dict(zip(Signature(model).inputs, samples_for(model, 3), strict=True))
    inputs = []
    for name, array in arrays.items():
        np.save(tmp_path / f"{name}.npy", array)
        inputs.append(f"{name}={tmp_path / name}.npy")
    signature = ("--tag_set", "serve", "--signature_def", "serving_default")
    files = ("--inputs", ";".join(inputs), "--outdir", tmp_path / "out")
    without = ("keras", "tf_keras", "keras_nisp")
    in_fresh_process(TOOL, "run", "--dir", export.path, *signature, *files, without=without)
    expected = model({name: tf.constant(array) for name, array in arrays.items()})
    np.testing.assert_allclose(
        np.load(tmp_path / "out" / "score.npy"), expected["score"], rtol=1e-4, atol=1e-5
    )


def test_samples_that_the_model_does_not_take(tmp_path):
    inputs = keras.Input((3,), dtype="int32")
    x = keras.layers.Embedding(5, 4)(inputs)
    model = keras.Model(inputs, keras.layers.GlobalAveragePooling1D()(x))
    with pytest.raises(kn.ExportError, match=r"does not run on the samples as a graph.*check_data"):
        kn.export_tflite(model, tmp_path / "m.tflite", check_data=np.full((4, 3), 9))
    assert not any(tmp_path.iterdir())


def test_a_file_that_does_not_run():
    """Some int8 files are written and taken by no interpreter: it is said what to do instead."""
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    samples, _ = check_samples(model, np.ones((8, 3), "float32"), 0)

    def run(arrays):
        raise RuntimeError("failed to create XNNPACK runtime")

    advice = tflite.INSTEAD_OF_INT8
    with pytest.raises(kn.ExportError, match=r"XNNPACK.*Nothing was written.*'dynamic'"):
        compare(Signature(model), run, samples, False, "TFLite file", advice)
