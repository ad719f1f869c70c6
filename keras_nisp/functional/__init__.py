"""`as_functional`: subclassed models and composite layers as graphs of Keras layers."""
