"""Networks of the NISP and C-SGD papers, and of their time, in plain functional Keras.

Each function returns a `keras.Model` from an input named `image` to logits. Parameters and
multiply-adds that are said to be published are compared in `tests/test_models.py`; parameters are
those that are trained.
"""

from models.alexnet import alexnet
from models.cifar_quick import cifar_quick
from models.cifar_resnet import cifar_resnet, load_cifar_resnet, preprocess_cifar
from models.densenet import densenet
from models.googlenet import googlenet
from models.lenet import lenet5
from models.mobilenet import mobilenet
from models.resnet import resnet
from models.small import inception, squeeze_excite
from models.vgg import vgg, vgg16

__all__ = [
    "alexnet",
    "cifar_quick",
    "cifar_resnet",
    "densenet",
    "googlenet",
    "inception",
    "lenet5",
    "load_cifar_resnet",
    "mobilenet",
    "preprocess_cifar",
    "resnet",
    "squeeze_excite",
    "vgg",
    "vgg16",
]
