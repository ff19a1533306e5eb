"""The trackers: one module each, installed as `otel_tracking_exporters`.

A module holds its tracker's `Tracker` class (what the followers feed) and two OpenTelemetry
exporter classes for SDK pipelines of people's own. Its tracker's package is imported at its top;
nothing imports these modules but their entry points.
"""
