"""Experiment tracking through OpenTelemetry."""
