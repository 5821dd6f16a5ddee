"""Teachers and students; each shows its inside by named taps."""
