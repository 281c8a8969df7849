"""NYUv2 (Silberman et al., ECCV 2012): 795 training and 654 test images of rooms, with classes and depth.

Nothing is downloaded. The user provides one of three forms, which `NYUv2` detects: the official MATLAB files, the
preprocessed folders that most multi-task code reads, or one small file that `prepare` wrote from either. All become
`Sample`s with the same conventions.
"""

from gradnorm_studies.vision.data.nyuv2.command import HEADER, check, prepare
from gradnorm_studies.vision.data.nyuv2.dataset import OFFICIAL, NYUv2

__all__ = ["HEADER", "OFFICIAL", "NYUv2", "check", "prepare"]
