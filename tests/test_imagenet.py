"""The ImageNet recipe, from the command line to a saved model, on images that TFDS makes up."""

import functools
import logging
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from fresh_process import in_fresh_process
from marked import first_is_fast

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

import imagenet

import keras_nisp as kn

TINY = ["--network=resnet18", "--weights=none", "--image-size=32", "--batch-size=4"]
OPTIONS = ["--multi-gpu", "--mixed-precision"]
COMMANDS = {"nisp": ["--ratio", "0.5"], "csgd": ["--share", "0.5", "--force"]}


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    """Runs a command on a few images, with fewer blocks than a ResNet-18 has, to save time."""
    monkeypatch.setattr(logging.getLogger("absl"), "disabled", True)
    neighbours(monkeypatch)

    def run(*arguments):
        blocks = (1, 1, 0, 0) if arguments[0] == "nisp" else (1, 1, 1, 1)
        monkeypatch.setitem(sys.modules["models.resnet"].BLOCKS, 18, blocks)
        with tfds.testing.mock_data(num_examples=8):
            imagenet.main([*arguments, *TINY, "--epochs=1", "--out", str(tmp_path)])
        return tmp_path

    return run


def neighbours(monkeypatch):
    """Clusters without k-means, which takes longer than all the rest."""
    plan_merging = functools.partial(kn.plan_merging, clustering="even")
    monkeypatch.setattr(kn, "plan_merging", plan_merging)


PREDICT = """
import keras, numpy as np
model = keras.models.load_model(sys.argv[1])
y = model(np.zeros((1, 32, 32, 3)))
np.savez(sys.argv[2], parameters=model.count_params(), y=y)
"""


def load_plainly(path):
    """Parameters, number of classes and their sum, in a process that has no keras_nisp."""
    found = path.with_suffix(".npz")
    in_fresh_process(PREDICT, path, found)
    with np.load(found) as arrays:
        return int(arrays["parameters"]), arrays["y"].shape[1], float(arrays["y"].sum().round(3))


@pytest.mark.training
@pytest.mark.filterwarnings("ignore:After 2 steps")  # clusters do not collapse, hence --force
@pytest.mark.parametrize("command", first_is_fast(*COMMANDS))
def test_whole_recipe(command, recipe, capsys):
    folder = recipe(command, *COMMANDS[command]) / f"{command}_resnet18_0.5"
    output = capsys.readouterr().out
    titles = ("pruned", "recalibrated", "fine-tuned") if command == "nisp" else ("merged",)
    for title in ("before", "plan", *titles):
        assert f"{title}: " in output
    assert "paper" not in output  # which says nothing of ResNet-18 in this script
    assert "val_top5" in (folder / "log.csv").read_text()
    assert not list(folder.glob("backup*"))
    plan = kn.Plan.load(folder / "plan.json")
    parameters, classes, total = load_plainly(folder / f"{command}.keras")
    assert parameters == plan.after.parameters
    assert (classes, total) == (1000, 1.0)


def test_clusters_that_would_not_collapse_are_an_error_before_training(
    recipe, tmp_path, monkeypatch
):
    monkeypatch.setattr(imagenet, "show_accuracy", lambda *arguments: None)
    with pytest.raises(SystemExit, match="larger --strength"):
        recipe("csgd", "--share", "0.5")
    assert not list(tmp_path.glob("*/log.csv"))


def test_missing_data_say_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(logging.getLogger("absl"), "disabled", True)
    arguments = ["nisp", *TINY, "--data-dir", str(tmp_path), "--out", str(tmp_path)]
    with pytest.raises(SystemExit, match=r"TFDS cannot download it.*tfds build imagenet2012"):
        imagenet.main(arguments)


def test_resnet18_has_no_trained_weights():
    with pytest.raises(SystemExit, match="--weights FILE"):
        imagenet.network(imagenet.parse(["nisp", "--network", "resnet18"]))


@pytest.mark.parametrize("crop", [imagenet.centre_crop, imagenet.random_crop])
@pytest.mark.parametrize("shape", [(40, 90), (90, 40), (20, 20)])
def test_crops(crop, shape):
    """Any image becomes a square of the same colour."""
    jpeg = tf.io.encode_jpeg(np.full((*shape, 3), (200, 100, 50), "uint8"), quality=100)
    image = crop(jpeg, 32)
    assert image.shape == (32, 32, 3)
    np.testing.assert_allclose(image, np.broadcast_to([200, 100, 50], image.shape), atol=3)


def test_centre_crop_keeps_the_centre():
    """Of 256 x 512 pixels those from 16 to 240 and from 144 to 368."""
    pixels = np.zeros((256, 512, 3), "uint8")
    pixels[16:240, 144:368] = 255
    image = imagenet.centre_crop(tf.io.encode_jpeg(pixels, quality=100), 224)
    assert np.min(image) > 200
    assert np.mean(imagenet.centre_crop(tf.io.encode_jpeg(pixels, quality=100), 256)) < 255


def test_rates():
    schedule = imagenet.step_decay(1.0, 700, 70, drops=(30, 50, 60), warmup=5)
    for epoch, rate in {0: 0.2, 3: 0.8, 4: 1, 29: 1, 30: 0.1, 50: 0.01, 60: 1e-3, 69: 1e-3}.items():
        np.testing.assert_allclose(schedule(10 * epoch + 1), rate, rtol=1e-5)
    np.testing.assert_allclose(imagenet.step_decay(1.0, 9, 3, drops=(1, 2))(8), 0.01, rtol=1e-5)


PLANS = [
    (["nisp", "--ratio=0.15"], 0.15, {"flops": 27.31, "params": 27.12}),
    (["csgd", "--share=0.7", "--rounding=floor"], 0.7, {"flops": 36.75}),
    (["csgd", "--share=0.6"], 0.6, {"flops": 46.24}),
    (["csgd", "--share=0.5"], 0.5, {"flops": 55.76}),
]


@pytest.mark.slow
@pytest.mark.parametrize(("arguments", "amount", "published"), PLANS)
def test_plans_of_resnet50_remove_what_the_papers_say(
    arguments, amount, published, rng, monkeypatch
):
    neighbours(monkeypatch)
    args = imagenet.parse([*arguments, "--weights=none"])
    model = imagenet.network(args)
    if args.command == "nisp":
        images = rng.normal(size=(8, 224, 224, 3)).astype("float32")
        plan = imagenet.nisp_plan(model, images, args)
    else:
        plan = imagenet.csgd_plan(model, args)
    for key, value in published.items():
        assert abs(100 * getattr(plan, f"{key}_reduction") - value) < 0.5
        assert f"-{value} %" in imagenet.PAPER[args.command, amount]


IN_ANOTHER_PROCESS = """
import functools, logging, sys
import keras, tensorflow as tf, tensorflow_datasets as tfds
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
import imagenet, models
two = functools.partial(tf.distribute.MirroredStrategy, ["CPU:0", "CPU:1"])
tf.distribute.MirroredStrategy = two
sys.modules["models.resnet"].BLOCKS[18] = (1, 1, 1, 1)
class Interrupt(keras.callbacks.CSVLogger):
    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 1:
            raise SystemExit("interrupted")
        super().on_epoch_begin(epoch, logs)
if sys.argv[1] == "interrupt":
    keras.callbacks.CSVLogger = Interrupt
with tfds.testing.mock_data(num_examples=8):
    imagenet.main(sys.argv[2:])
"""


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_a_run_goes_on_where_it_was_interrupted(command, tmp_path):
    """On two replicas, in float16."""

    def run(mode):
        arguments = [command, *COMMANDS[command], *TINY, "--epochs=2", *OPTIONS]
        code = [sys.executable, "-c", IN_ANOTHER_PROCESS, mode, *arguments, "--out", str(tmp_path)]
        environment = {**os.environ, "PYTHONPATH": os.path.dirname(imagenet.__file__)}
        return subprocess.run(code, env=environment, capture_output=True, text=True)

    folder = tmp_path / f"{command}_resnet18_0.5"
    first = run("interrupt")
    assert "interrupted" in first.stderr
    assert len(list(folder.glob("backup*"))) == 1
    second = run("go on")
    assert second.returncode == 0, second.stderr[-2000:]
    assert "Epoch 1/2" not in second.stdout
    assert "Epoch 2/2" in second.stdout
    log = (folder / "log.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in log] == ["epoch", "0", "1"]
    assert load_plainly(folder / f"{command}.keras")[1] == 1000
