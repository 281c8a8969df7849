"""The paper's experiments, and ours, by one command each: `gradnorm reproduce STUDY`."""
