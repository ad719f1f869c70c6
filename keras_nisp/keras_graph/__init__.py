"""The graph of a Keras model: walked, called, copied.

With what it says of models, layers, optimizers and masks, this is the only subpackage that touches
internals of Keras.
"""
