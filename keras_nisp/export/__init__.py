"""Ways out of Keras: TF Serving, TFLite, ONNX, tf_keras for TFMOT."""
