"""The paper's experiments, and ours. A leaf: it uses the library's public API only.

A new study is one file (config, data, losses, metrics, figures) and one line of `STUDIES`.
"""

from __future__ import annotations

from gradnorm.study.digits import Digits
from gradnorm.study.rl import Rl
from gradnorm.study.toy import Toy

STUDIES = {study.name: study for study in (Toy, Digits, Rl)}
"""By the name that `gradnorm reproduce` takes."""
