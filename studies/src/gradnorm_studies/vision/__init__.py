"""Several tasks on one image: §5, and detection."""
