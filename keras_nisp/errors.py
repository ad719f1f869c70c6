"""Errors and warnings of this package, all of them also the usual built-in kinds."""


class NoFinalResponseLayerError(ValueError):
    """The layer that feeds the classifier could not be found."""


class BudgetError(ValueError):
    """A reduction of FLOPs or parameters that cannot be reached."""


class PlanMismatchError(ValueError):
    """A plan that was made for a model of another structure."""


class PlanFileError(ValueError):
    """A file that is not a plan, or a damaged one."""


class VerificationError(ValueError):
    """A rebuilt model that does not give what the plan says it must give."""


class NotCollapsedError(ValueError):
    """Clusters that are to be merged but are not identical."""


class UnknownLayerWarning(UserWarning):
    """A layer without a rule: its channels stay."""
