"""Grid files that come with the harness."""
