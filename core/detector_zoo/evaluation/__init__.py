"""Measuring detectors without fooling oneself: equal formats, metrics with intervals."""
