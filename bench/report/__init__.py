"""From records to evidence: statistics, tables. Never imports torch."""
