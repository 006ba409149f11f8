"""Metrics: what a score means, how sure it is, and when it is undefined. Risk scores are higher = earlier event."""
