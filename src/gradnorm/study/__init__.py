"""The paper's experiments, and ours. A leaf: it uses the library's public API only.

A new study is one file (config, data, losses, metrics, figures) and one line of `bases.py`.
"""

from __future__ import annotations

from gradnorm.study.alpha import Alpha
from gradnorm.study.bases import BASES
from gradnorm.study.grid import Grid

STUDIES = {**BASES, Alpha.name: Alpha, Grid.name: Grid}
"""By the name that `gradnorm reproduce` takes."""
