"""The command line `keras-nisp`. Imports TensorFlow only where a command needs it."""
