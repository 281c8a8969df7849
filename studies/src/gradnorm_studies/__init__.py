"""The paper's experiments, and our own, one command per study: `gradnorm reproduce STUDY`."""
