"""Proofs for those who write rules: `check_rule`.

`import keras_nisp` leaves this subpackage out: import it where tests need it.
"""

from keras_nisp.testing.check_rule import check_rule

__all__ = ["check_rule"]
