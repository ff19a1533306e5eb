"""Recording without a change to the program: what `otel-tracking run` puts into its processes."""
