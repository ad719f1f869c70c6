"""Torch-Pruning on the weights of our base networks, beside the arms of the experiment `curves`.

    pip install torch torch-pruning
    python benchmarks/torch_networks.py --data-dir DIR --weights-dir WEIGHTS

The Keras ResNet-20 is carried over to PyTorch. Torch-Pruning removes channels in small steps until
the FLOPs are gone (as it counts them: convolutions and dense layers), with one ratio ("local") or
one ranking for all groups ("global"). Taylor sees the labels of the 512 images, again in each step.
Then the statistics of BatchNorm are taken again on the 512 images that all arms of `curves` see.
Rows are kept in results/curves_TASK.json.
"""

import argparse
import copy
import functools
from collections.abc import Callable, Iterator

import keras
import numpy as np
import torch
import torch_pruning
from experiments.curves import IMAGES, LEVELS
from results import Rows
from torch import nn
from training import Lab

IMPORTANCES = {
    "L1": lambda: torch_pruning.importance.GroupMagnitudeImportance(p=1),
    "Taylor, with labels": torch_pruning.importance.GroupTaylorImportance,
}
STEPS = 50  # in which nearly all channels would go


class Twin(nn.Module):
    """A ResNet for CIFAR of examples/models, its layers under the same names."""

    def __init__(self, model: keras.Model):
        super().__init__()
        self.parts = nn.ModuleDict({layer.name: _twin(layer) for layer in model.layers})
        self.blocks = [name[:-4] for name in self.parts if name.endswith("_add")]

    def forward(self, x):
        x = self._unit("stem", x).relu()
        for block in self.blocks:
            y = self._unit(f"{block}_2", self._unit(f"{block}_1", x).relu())
            shortcut = f"{block}_shortcut"
            x = (y + (self._unit(shortcut, x) if f"{shortcut}_conv" in self.parts else x)).relu()
        return self.parts["logits"](x.mean((2, 3)))

    def _unit(self, name, x):
        return self.parts[f"{name}_bn"](self.parts[f"{name}_conv"](x))


def _twin(layer: keras.layers.Layer) -> nn.Module:
    """The layer in PyTorch; nothing for a layer without weights."""
    weights = [torch.tensor(np.asarray(weight)) for weight in layer.get_weights()]
    if isinstance(layer, keras.layers.Conv2D):
        size, _, entering, leaving = weights[0].shape
        twin = nn.Conv2d(entering, leaving, size, layer.strides, size // 2, bias=False)
        state = {"weight": weights[0].permute(3, 2, 0, 1)}
    elif isinstance(layer, keras.layers.BatchNormalization):
        twin = nn.BatchNorm2d(len(weights[0]), eps=layer.epsilon)
        names = ("weight", "bias", "running_mean", "running_var")
        state = dict(zip(names, weights, strict=True))
    elif isinstance(layer, keras.layers.Dense):
        twin = nn.Linear(*weights[0].shape)
        state = {"weight": weights[0].T, "bias": weights[1]}
    else:
        return nn.Identity()
    twin.load_state_dict(state, strict=False)
    return twin


def _tensor(images: np.ndarray) -> torch.Tensor:
    return torch.tensor(np.asarray(images)).permute(0, 3, 1, 2)


@torch.no_grad()
def _accuracy(model: Twin, x: torch.Tensor, y: np.ndarray) -> float:
    model.eval()
    answers = torch.cat([model(part).argmax(1) for part in x.split(500)])
    return float((answers.numpy() == y).mean())


@torch.no_grad()
def _renew(model: Twin, x: torch.Tensor) -> None:
    """Statistics of BatchNorm, from all images at once."""
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.reset_running_stats()
            part.momentum = None
    model.train()
    model(x)


def _pruned(
    model: Twin, x: torch.Tensor, y: torch.Tensor, importance: Callable, is_global: bool, levels
) -> Iterator[tuple[float, Twin, dict]]:
    """Each level, the network there, and what is gone."""
    count = functools.partial(torch_pruning.utils.count_ops_and_params, example_inputs=x[:1])
    pruner = torch_pruning.pruner.BasePruner(
        model,
        x[:1],
        importance(),
        global_pruning=is_global,
        pruning_ratio=0.98,
        max_pruning_ratio=0.98,
        iterative_steps=STEPS,
        ignored_layers=[model.parts["logits"]],
    )
    flops, parameters = count(model.eval())
    waiting = sorted(levels)
    for _ in range(STEPS):
        if isinstance(pruner.importance, torch_pruning.importance.GroupTaylorImportance):
            model.eval().zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
        pruner.step()
        now = count(model.eval())
        while waiting and 1 - now[0] / flops >= waiting[0]:
            gone = {
                "flops_removed": 1 - now[0] / flops,
                "parameters_removed": 1 - now[1] / parameters,
            }
            yield waiting.pop(0), copy.deepcopy(model), gone
        if not waiting:
            return


def run(lab: Lab, rows: Rows, seed: int) -> None:
    base = lab.base(seed)
    images, labels = lab.calibration(seed, IMAGES)
    x, y = _tensor(images), torch.tensor(labels.astype("int64"))
    test = _tensor(lab.data[1][0]), lab.data[1][1]
    carried, wanted = _accuracy(Twin(base), *test), lab.accuracy(base)
    if abs(carried - wanted) > 0.001:
        raise SystemExit(f"Expected an accuracy of {wanted} in PyTorch, too. Received: {carried}")

    def measure(importance, is_global):
        found = {}
        for level, small, gone in _pruned(Twin(base), x, y, importance, is_global, lab.args.levels):
            as_it_is = _accuracy(small, *test)
            _renew(small, x)
            renewed = _accuracy(small, *test)
            found[level] = {"accuracy": renewed, "before_renewal": as_it_is, **gone}
        return found

    for name, importance in IMPORTANCES.items():
        for scope in ("local", "global"):
            networks = functools.cache(functools.partial(measure, importance, scope == "global"))
            for level in lab.args.levels:
                key = {"seed": seed, "arm": "Torch-Pruning", "importance": f"{name}, {scope}"}
                key |= {"level": level, "epochs": 0, "version": torch_pruning.__version__}
                rows.once(key, lambda networks=networks, level=level: networks()[level])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--task", default="resnet20_cifar10")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--levels", nargs="+", type=float, default=LEVELS)
    for folder in ("data", "weights"):
        parser.add_argument(f"--{folder}-dir")
    parser.add_argument("--out", default="out", help="folder of the base networks")
    args = parser.parse_args()
    lab, rows = Lab(args.task, args), Rows(f"curves_{args.task}", args)
    for seed in range(args.seeds):
        run(lab, rows, seed)


if __name__ == "__main__":
    main()
