"""Distillation methods, one file each; what several share is in files with a leading underscore."""
