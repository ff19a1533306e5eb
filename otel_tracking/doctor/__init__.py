"""What `otel-tracking doctor` looks at: each part returns findings, and changes nothing."""
