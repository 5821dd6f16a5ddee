"""Distillation methods: one file each; pieces shared by several start with an underscore."""
