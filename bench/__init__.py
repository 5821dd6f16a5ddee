"""A benchmark harness for knowledge distillation."""
