"""What brings accuracy back: recalibration, compensation, distillation."""
