"""Sweeps that run on any study: learning rates, α, random static weights."""
