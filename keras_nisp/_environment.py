"""Says in one sentence what is wrong with a process that cannot work."""

import os


def check_environment() -> None:
    """Raises unless Keras 3 runs on TensorFlow here.

    Raises:
        ImportError: Keras is too old, or runs on another backend.
    """
    import keras

    version = tuple(int(part) for part in keras.__version__.split(".")[:2])
    if version < (3, 12):
        raise ImportError(
            f"keras_nisp needs Keras 3.12 or newer. Found Keras {keras.__version__}: "
            "`pip install -U keras`."
        )
    if keras.backend.backend() != "tensorflow":
        raise ImportError(
            "keras_nisp works with the TensorFlow backend of Keras only. Found the backend "
            f"'{keras.backend.backend()}': set KERAS_BACKEND=tensorflow before importing keras."
        )


def legacy_keras_hint() -> str:
    """A sentence for errors about models of Keras 2, or the empty string."""
    if os.environ.get("TF_USE_LEGACY_KERAS") not in (None, "", "0", "false", "False"):
        return (
            " TF_USE_LEGACY_KERAS is set (tensorflow-model-optimization sets it when it is "
            "imported), so `tf.keras` may be Keras 2 here: build the model with `import keras`."
        )
    return ""
