"""Training: the stage engine, cohorts, teachers, evaluation."""
