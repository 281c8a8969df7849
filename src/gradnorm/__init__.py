"""GradNorm."""
