"""The decision: which row of a pair, how sure, and what would settle it; functions of numbers."""
