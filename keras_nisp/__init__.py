"""keras_nisp: physically smaller Keras models, by NISP and C-SGD."""

from keras_nisp._environment import check_environment

check_environment()

from keras_nisp.benchmarking import benchmark  # noqa: E402
from keras_nisp.centripetal import Centripetal, CentripetalSGD  # noqa: E402
from keras_nisp.channels import ChannelMap  # noqa: E402
from keras_nisp.cost import profile  # noqa: E402
from keras_nisp.deviation import deviation  # noqa: E402
from keras_nisp.distillation import distiller  # noqa: E402
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
from keras_nisp.functional import as_functional  # noqa: E402
from keras_nisp.importance import (  # noqa: E402
    NISP,
    BNScale,
    GeometricMedian,
    Importance,
    LayerByLayer,
    Magnitude,
    NISPMag,
    Random,
    Taylor,
    inf_fs,
)
from keras_nisp.latency import LatencyTable  # noqa: E402
from keras_nisp.merging import plan_merging  # noqa: E402
from keras_nisp.monitor import CentripetalMonitor  # noqa: E402
from keras_nisp.plan import Plan  # noqa: E402
from keras_nisp.planning import plan_pruning  # noqa: E402
from keras_nisp.pruner import NISPPruner  # noqa: E402
from keras_nisp.pruning import prune  # noqa: E402
from keras_nisp.recalibration import recalibrate  # noqa: E402
from keras_nisp.rules import PassThrough, Rule, register_rule  # noqa: E402
from keras_nisp.schedules import PolynomialSchedule  # noqa: E402
from keras_nisp.sensitivity import Sensitivity, sensitivity  # noqa: E402
from keras_nisp.surgery import rebuild  # noqa: E402
from keras_nisp.tracing import trace  # noqa: E402
from keras_nisp.verification import verify  # noqa: E402
from keras_nisp.widening import widen  # noqa: E402

__all__ = [
    "BNScale",
    "BudgetError",
    "Centripetal",
    "CentripetalMonitor",
    "CentripetalSGD",
    "ChannelMap",
    "ConversionError",
    "DataRangeWarning",
    "ExportError",
    "GeometricMedian",
    "Importance",
    "LatencyTable",
    "LayerByLayer",
    "Magnitude",
    "NISP",
    "NISPMag",
    "NISPPruner",
    "NoFinalResponseLayerError",
    "NotCollapsedError",
    "PassThrough",
    "Plan",
    "PlanFileError",
    "PlanMismatchError",
    "PolynomialSchedule",
    "Random",
    "Rule",
    "RuleError",
    "Sensitivity",
    "Taylor",
    "UnknownLayerWarning",
    "VerificationError",
    "as_functional",
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
