"""What `print` and notebooks show of a balancer, a history, a report and a diagnosis."""

import re
from html.parser import HTMLParser

import pytest
import torch
from torch import nn

from gradnorm import ClosedForm, GradNorm, History, StepRecord, diagnose

from .networks import Net, batch, cpu_only, trained

VOID = {"br", "hr", "img"}


class Page(HTMLParser):
    """The cells of all rows, and a check that every element is closed where it should be."""

    def __init__(self, text):
        super().__init__()
        self.open, self.rows, self.styles, self.names = [], [], [], set()
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        assert tag not in VOID
        self.open.append(tag)
        self.names.add(tag)
        self.styles.append(dict(attrs).get("style") or "")
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if {"td", "th"} & {*self.open}:
            self.rows[-1][-1] += data

    @property
    def widths(self):
        return [float(found[1]) for style in self.styles if (found := re.search(r"\bwidth:([\d.]+)em", style))]


def shown():
    net, balancer = trained(5)
    return {
        "balancer": balancer,
        "history": balancer.history,
        "report": balancer.report(),
        "diagnosis": diagnose(net.losses(batch())),
        "balancer before its first step": GradNorm(["a", "b"]),
        "empty history": History(["a", "b"], 3),
    }


# ---------------------------------------------------------------------------------------------------------- notebooks


@pytest.mark.parametrize("name", [*shown()])
def test_a_table_is_html_without_scripts_or_colors_of_text(name):
    text = shown()[name]._repr_html_()
    page = Page(text)
    assert page.names <= {"div", "b", "ul", "li", "table", "tr", "th", "td"}
    assert not re.search(r"nan|inf\b", text)
    for style in page.styles:  # text has the notebook's own color, on its own ground
        assert not re.search(r"(^|;)color:(?!inherit)", style)
    for row in page.rows[1:]:
        assert row[0] in ("a", "b", "c", "cosine")


@cpu_only
def test_the_table_of_a_balancer_has_its_weights_and_last_step():
    _, balancer = trained(5)
    page = Page(balancer._repr_html_())
    assert page.rows[0] == ["task", "weight", "", "loss", "norm", "target", "rate"]
    figures = balancer.log_dict()
    for task, row in zip("abc", page.rows[1:], strict=True):
        assert row[:2] == [task, f"{balancer.named_weights()[task]:.3g}"]
        assert row[4] == f"{figures[f'gradnorm/norm/{task}']:.3g}"
    weights = balancer.weights.tolist()
    assert page.widths == pytest.approx([6 * weight / max(weights) for weight in weights], abs=0.01)


def test_the_table_of_a_history_shows_curves_of_few_points():
    values = torch.tensor([[1.0, 0.5, 1, 1, 1], [2.0, 2.0, 1, 1, 1], [3.0, float("nan"), 1, 1, 1]])
    history = History(["a", "b", "c"], 2000)
    for step in range(103):
        history.append(StepRecord(step, values, None))
    text = history._repr_html_()
    assert "103 recorded steps, from 0 to 102" in text
    assert text.count("width:3px") == 2 * 3 * 32


def test_print_tells_what_a_history_holds():
    history = History(["a", "b"], capacity=4)
    assert repr(history) == "History(a, b: 0 recorded steps)"
    for step in range(10):
        history.append(StepRecord(step, torch.ones(2, 5), None))
    assert repr(history) == "History(a, b: 4 recorded steps, from 0 to 9)"


def test_names_are_escaped():
    balancer = GradNorm(["<b>a</b>", "a & b"])
    assert Page(balancer._repr_html_()).rows[1][0] == "<b>a</b>"
    assert "&lt;b&gt;a&lt;/b&gt;" in balancer._repr_html_()


# -------------------------------------------------------------------------------------------------------------- print


@cpu_only
def test_print_names_update_layer_and_the_weight_of_each_task():
    net = Net()
    balancer = GradNorm(["a", "long name"], model=net, shared="trunk.2.weight", initial_weights=[1.5, 0.5])
    assert repr(balancer).splitlines() == [
        "GradNorm(",
        "  alpha=0.12, update=Descent(lr=0.025, min_weight=0.0001), every=1, at='layer'",
        "  W: trunk.2.weight (8, 8)",
        "  a          1.5",
        "  long name  0.5",
        ")",
    ]
    assert "W: detected in the first backward" in repr(GradNorm(2, update=ClosedForm()))
    assert "update=ClosedForm(smoothing=0.9)" in repr(GradNorm(2, update=ClosedForm()))
    assert "W: where branch() is called" in repr(GradNorm(2, at="branches"))
    assert "at='layer', frozen" in repr(balancer.freeze())
    assert "\n    long name  0.5\n" in repr(nn.ModuleDict({"balancer": balancer}))


def test_print_reads_no_value_from_another_device():
    with torch.device("meta"):  # on which there is none to read
        balancer = GradNorm(["a", "b"])
    assert repr(balancer).splitlines()[3:] == ["  a  on meta", "  b  on meta", "  (named_weights() reads them)", ")"]


def test_weights_by_name_are_plain_numbers():
    _, balancer = trained(3)
    named = balancer.named_weights()
    assert list(named) == ["a", "b", "c"]
    assert list(named.values()) == balancer.weights.tolist()
    assert all(type(value) is float for value in named.values())
