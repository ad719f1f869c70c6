"""The chain of docs/command_line.md, run as it stands there, on smaller data."""

import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def transcript():
    sys.path.insert(0, str(ROOT / "docs"))
    try:
        import transcript
    finally:
        sys.path.pop(0)
    return transcript


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """Fashion-MNIST as TFDS has it on disk, but with scikit-learn's digits in it."""
    tfds = pytest.importorskip("tensorflow_datasets")
    import tensorflow as tf
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.zeros((len(digits.images), 28, 28, 1), np.uint8)
    images[:, 2:26, 2:26, 0] = np.kron(digits.images * 15, np.ones((3, 3)))

    def part(rows):
        arrays = {"image": images[rows], "label": digits.target[rows]}
        return tf.data.Dataset.from_tensor_slices(arrays)

    folder = tmp_path_factory.mktemp("tfds")
    features = tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(shape=(28, 28, 1)),
            "label": tfds.features.ClassLabel(num_classes=10),
        }
    )
    tfds.dataset_builders.store_as_tfds_dataset(
        name="fashion_mnist",
        version="3.0.1",
        data_dir=folder,
        split_datasets={"train": part(slice(500)), "test": part(slice(500, 650))},
        features=features,
        disable_shuffling=True,
    )
    return folder


@pytest.fixture(scope="module")
def outputs(transcript, data_dir, tmp_path_factory):
    """What each command printed, and the folder in which they ran."""
    folder, printed = tmp_path_factory.mktemp("chain"), []
    for command in transcript.CHAIN:
        more = ("--epochs", "4", "--batch-size", "8") if command.startswith("python") else ()
        printed.append(transcript.run(command, folder, str(data_dir), *more))
    return printed, folder


@pytest.mark.slow  # test_cli.py has each command
@pytest.mark.filterwarnings("ignore")  # of tensorflow-datasets while it writes
def test_the_chain_runs(outputs):
    printed, folder = outputs
    written = {path.name for path in folder.iterdir()}
    assert {"model.keras", "small.keras", "tuned.keras", "plan.json", "report.html"} <= written
    assert {"tuned.tflite", "tuned_int8.tflite", "sensitivity.json", "models"} <= written
    text = "\n".join(printed)
    assert "verified: outputs differ by" in text
    assert "top_k(image) -> classes, scores" in text
    assert "tuned_int8.tflite is" in text
    accuracies = [line for line in text.splitlines() if line.startswith("accuracy ")]
    assert len(accuracies) == 3  # of what was repaired, before fine-tuning, and in the diff
    after = float(accuracies[-1].split()[3])
    assert after > 0.7  # by chance 0.1; each release of Keras draws other numbers


def test_the_page_shows_the_commands_of_the_chain(transcript):
    page = (ROOT / "docs" / "command_line.md").read_text(encoding="utf-8")
    shown = [line[2:] for line in page.splitlines() if line.startswith("$ ")]
    assert shown == transcript.CHAIN
