"""What methods cost: one method by itself, timed, counted and recorded."""
