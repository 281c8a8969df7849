"""The paper's experiments, and ours. A leaf: it uses the library's public API only.

A new study is one file (config, data, losses, metrics, figures) and one line of `bases.py`.
"""

from __future__ import annotations

from gradnorm.study.alpha import Alpha
from gradnorm.study.detect import Detect
from gradnorm.study.digits import Digits
from gradnorm.study.grid import Grid
from gradnorm.study.rl import Rl
from gradnorm.study.toy import Toy
from gradnorm.study.vision import Vision

STUDIES = {study.name: study for study in (Toy, Digits, Vision, Detect, Rl, Alpha, Grid)}
"""By the name that `gradnorm reproduce` takes."""
