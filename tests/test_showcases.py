"""Networks as people bring them: pruned, repaired, fine-tuned, saved, loaded, shipped."""

import keras
import numpy as np
import pytest
import showcases
import tensorflow as tf
from fresh_process import in_fresh_process

import keras_nisp as kn
from keras_nisp.export.agreement import CHECKED
from keras_nisp.export.signature import Signature
from keras_nisp.export.tflite import runner

RNG = np.random.default_rng(1)
SHAPES = {"SHAPE", "STRIDED_SLICE", "PACK"}


def tuned(build, tmp_path, importance=None, **budget):
    """What a user ends with: the small model, fine-tuned, from its file; and its inputs."""
    model, x, y = build()
    small = kn.prune(
        model,
        importance or kn.Magnitude(),
        calibration=x,
        verbose=0,
        **(budget or {"params_reduction": 0.3}),
    )
    assert small.count_params() < 0.85 * model.count_params()
    size = model.inputs[0].shape[0] or 8
    small.fit(x, y, batch_size=size, epochs=1, verbose=0)
    small.save(tmp_path / "small.keras")
    loaded = keras.models.load_model(tmp_path / "small.keras")
    for want, got in zip(_answers(small, x), _answers(loaded, x), strict=True):
        np.testing.assert_allclose(got, want, atol=1e-6)
    return loaded, x


def _answers(model, x):
    for layer in model.layers:
        if getattr(layer, "stateful", False):
            layer.reset_state()
    return keras.tree.flatten(model.predict(x, batch_size=model.inputs[0].shape[0], verbose=0))


PREDICT = """
import numpy as np, tensorflow as tf
data = dict(np.load(sys.argv[2]))
function = tf.saved_model.load(sys.argv[1]).signatures["serving_default"]
inputs = {k: v for k, v in data.items() if not k.startswith("want_")}
size = int(sys.argv[3])
rows = []
for i in range(0, len(next(iter(inputs.values()))), size):
    part = {k: tf.constant(v[i : i + size].tolist() if v.dtype.kind == "U" else v[i : i + size])
            for k, v in inputs.items()}
    rows.append({k: v.numpy() for k, v in function(**part).items()})
for name in rows[0]:
    got = np.concatenate([row[name] for row in rows])
    np.testing.assert_allclose(got, data["want_" + name], rtol=1e-4, atol=1e-5)
"""


def serve(model, x, tmp_path):
    """Exports a SavedModel and runs it in a process that knows neither Keras nor this package."""
    done = kn.export_serving(model, tmp_path / "served", check_data=x, verbose=0)
    signature, size = Signature(model), model.inputs[0].shape[0]
    flat = [x[name] for name in signature.inputs] if isinstance(x, dict) else keras.tree.flatten(x)
    flat = [a.numpy().astype(str) if getattr(a, "dtype", 0) == tf.string else a for a in flat]
    np.savez(
        tmp_path / "data.npz",
        **dict(zip(signature.inputs, flat, strict=True)),
        **{f"want_{k}": v for k, v in zip(signature.outputs, _answers(model, x), strict=True)},
    )
    without = ("keras", "tf_keras", "keras_nisp")
    size = size or len(flat[0])
    in_fresh_process(PREDICT, done.path, tmp_path / "data.npz", size, without=without)


# Hardly trained, the network is undecided between classes on some samples.
@pytest.mark.filterwarnings("ignore:Quantization changes the answers")
def test_eegnet_for_a_microcontroller(tmp_path):
    model, x = tuned(showcases.eegnet, tmp_path)
    with pytest.warns(UserWarning, match=r"in float .*ELU"):
        done = kn.export_tflite(model, tmp_path / "eeg.tflite", "int8", x, verbose=0)
    assert done.batch_size == 1
    assert not SHAPES & set(done.operations)
    assert set(done.float_operations) == {"ELU"}
    assert done.agreement.relative < 0.3


@pytest.mark.slow
def test_streaming_gru(tmp_path):
    model, x = tuned(showcases.streaming_gru, tmp_path)
    done = kn.export_tflite(model, tmp_path / "stream.tflite", check_data=x, verbose=0)
    (want,) = _answers(model, x)
    got = runner(done.path)({"window": x})["output_0"]
    np.testing.assert_allclose(got, want, atol=1e-5)
    serve(model, x, tmp_path)


@pytest.mark.slow
def test_detector_with_distributions_over_distances(tmp_path):
    model, x = tuned(showcases.dfl_detector, tmp_path)
    done = kn.export_tflite(model, tmp_path / "boxes.tflite", check_data=x, batch_size=1, verbose=0)
    assert done.outputs == ("boxes", "classes")
    assert max(row.relative for row in done.agreement.outputs) < 1e-4
    serve(model, x, tmp_path)


def test_text_classifier_serves_strings(tmp_path):
    model, x = tuned(showcases.text_classifier, tmp_path)
    serve(model, x, tmp_path)


def test_adapted_table(tmp_path):
    model, x = tuned(showcases.tabular, tmp_path)
    serve(model, x, tmp_path)


def test_partly_tuned_by_lora(tmp_path):
    model, x = tuned(showcases.lora_mlp, tmp_path, params_reduction=0.2)
    serve(model, x, tmp_path)
    kn.export_tflite(model, tmp_path / "lora.tflite", check_data=x, verbose=0)


def test_siamese(tmp_path):
    model, x = tuned(showcases.siamese, tmp_path)
    serve(model, x, tmp_path)
    kn.export_tflite(model, tmp_path / "siamese.tflite", check_data=x, verbose=0)


def _cbam(folder):
    return tuned(showcases.cbam, folder, kn.NISP(showcases.cbam()[1]), flops_reduction=0.4)


def test_cbam(tmp_path):
    model, x = _cbam(tmp_path)
    done = kn.export_tflite(model, tmp_path / "cbam.tflite", check_data=x, verbose=0)
    assert done.agreement.top1 == 1


@pytest.mark.bridges
def test_cbam_in_onnx(tmp_path):
    model, x = _cbam(tmp_path)
    kn.export_onnx(model, tmp_path / "cbam.onnx", check_data=x, verbose=0)


def _with_statistics(model, x):
    """BatchNormalization as training leaves it: that of a fresh network fits no data."""
    norms = [la for la in model.layers if isinstance(la, keras.layers.BatchNormalization)]
    for momentum in (0.5, 0.99):
        for layer in norms:
            layer.momentum = momentum
        for _ in range(10 if momentum < 0.9 else 0):
            model(x, training=True)


@pytest.mark.slow
def test_efficientnet_with_loaded_statistics(tmp_path):
    """As ImageNet's weights have them: Keras loads means and variances, nobody adapts."""

    def build():
        def fresh():
            return keras.applications.EfficientNetB0(
                weights=None, input_shape=(64, 64, 3), classes=5
            )

        first, model = fresh(), fresh()
        first.get_layer("normalization").adapt(RNG.uniform(0.2, 0.9, (64, 8, 8, 3)))
        first.save_weights(tmp_path / "imagenet.weights.h5")
        model.load_weights(tmp_path / "imagenet.weights.h5")
        x = (255 * RNG.uniform(size=(16, 64, 64, 3))).astype("float32")
        _with_statistics(model, x)
        model.compile(keras.optimizers.SGD(1e-5), "sparse_categorical_crossentropy")
        return model, x, RNG.integers(0, 5, 16)

    model, x = tuned(build, tmp_path, flops_reduction=0.4)
    done = kn.export_tflite(model, tmp_path / "net.tflite", check_data=x, verbose=0)
    assert done.agreement.samples == min(len(x), CHECKED)
    serve(model, x, tmp_path)
