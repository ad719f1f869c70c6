"""keras_nisp: physically smaller Keras models, by NISP and C-SGD."""

__version__ = "0.1.0"

from keras_nisp._environment import check_environment

check_environment()

from keras_nisp.centripetal.deviation import deviation  # noqa: E402
from keras_nisp.centripetal.merging import plan_merging  # noqa: E402
from keras_nisp.centripetal.monitor import CentripetalMonitor  # noqa: E402
from keras_nisp.centripetal.optimizers import Centripetal, CentripetalSGD  # noqa: E402
from keras_nisp.channels.call import Call  # noqa: E402
from keras_nisp.channels.channel_map import ChannelMap  # noqa: E402
from keras_nisp.channels.cost import profile  # noqa: E402
from keras_nisp.channels.named_tensor import Traced  # noqa: E402
from keras_nisp.channels.tracing import trace  # noqa: E402
from keras_nisp.damage.table import Sensitivity  # noqa: E402
from keras_nisp.errors import (  # noqa: E402
    BudgetError,
    ConversionError,
    DataRangeWarning,
    ExportError,
    NoFinalResponseLayerError,
    NotCollapsedError,
    PlanFileError,
    PlanMismatchError,
    RuleError,
    UnknownLayerWarning,
    VerificationError,
)
from keras_nisp.export.onnx import export_onnx  # noqa: E402
from keras_nisp.export.serving import export_serving  # noqa: E402
from keras_nisp.export.tf_keras import to_tf_keras  # noqa: E402
from keras_nisp.export.tflite import export_tflite  # noqa: E402
from keras_nisp.export.tfmot import import_tfmot, quantization_aware  # noqa: E402
from keras_nisp.functional.as_functional import as_functional  # noqa: E402
from keras_nisp.functional.as_original import as_original  # noqa: E402
from keras_nisp.importance import (  # noqa: E402
    LRP,
    NISP,
    BNScale,
    GeometricMedian,
    Importance,
    LayerByLayer,
    Magnitude,
    NISPMag,
    OptimalBrainSurgeon,
    Random,
    SynFlow,
    Taylor,
    inf_fs,
)
from keras_nisp.latency.benchmarking import benchmark  # noqa: E402
from keras_nisp.latency.table import LatencyTable  # noqa: E402
from keras_nisp.plans.budget import Budget  # noqa: E402
from keras_nisp.plans.plan import Plan  # noqa: E402
from keras_nisp.plans.planning import plan_pruning  # noqa: E402
from keras_nisp.pruning.pruner import NISPPruner  # noqa: E402
from keras_nisp.pruning.pruning import prune  # noqa: E402
from keras_nisp.pruning.schedules import PolynomialSchedule  # noqa: E402
from keras_nisp.pruning.sensitivity import sensitivity  # noqa: E402
from keras_nisp.recovery.distillation import distiller  # noqa: E402
from keras_nisp.recovery.recalibration import recalibrate  # noqa: E402
from keras_nisp.rules import ChannelNorm, ChannelWise, PassThrough, Rule, register_rule  # noqa: E402
from keras_nisp.surgery.rebuilding import rebuild  # noqa: E402
from keras_nisp.surgery.verification import verify  # noqa: E402
from keras_nisp.surgery.widening import widen  # noqa: E402

__all__ = [
    "BNScale",
    "Budget",
    "BudgetError",
    "Call",
    "Centripetal",
    "CentripetalMonitor",
    "CentripetalSGD",
    "ChannelMap",
    "ChannelNorm",
    "ChannelWise",
    "ConversionError",
    "DataRangeWarning",
    "ExportError",
    "GeometricMedian",
    "Importance",
    "LRP",
    "LatencyTable",
    "LayerByLayer",
    "Magnitude",
    "NISP",
    "NISPMag",
    "NISPPruner",
    "NoFinalResponseLayerError",
    "NotCollapsedError",
    "OptimalBrainSurgeon",
    "PassThrough",
    "Plan",
    "PlanFileError",
    "PlanMismatchError",
    "PolynomialSchedule",
    "Random",
    "Rule",
    "RuleError",
    "Sensitivity",
    "SynFlow",
    "Taylor",
    "Traced",
    "UnknownLayerWarning",
    "VerificationError",
    "as_functional",
    "as_original",
    "benchmark",
    "deviation",
    "distiller",
    "export_onnx",
    "export_serving",
    "export_tflite",
    "import_tfmot",
    "inf_fs",
    "plan_merging",
    "plan_pruning",
    "profile",
    "prune",
    "quantization_aware",
    "rebuild",
    "recalibrate",
    "register_rule",
    "sensitivity",
    "to_tf_keras",
    "trace",
    "verify",
    "widen",
]


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
