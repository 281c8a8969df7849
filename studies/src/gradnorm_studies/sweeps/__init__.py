"""What runs on any study: learning rates, α, random static weights."""
