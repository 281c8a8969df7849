"""Landmarks and attributes of faces, the paper's supplement: MTFL (Zhang et al., ECCV 2014) at 40×40 pixels."""
