"""Breaks one line of the library at a time, and prints the breaks that no test has noticed.

Run it as `make mutants` on a tree whose tests pass; `make mutants ONLY=window` takes those with this word alone. Each
break is made in a copy of `src`, and only the tests that should notice it run. One that survives is a missing test, or
a line that does nothing. `tests/architecture/test_mutants.py` says where the table no longer fits the source.
"""

from __future__ import annotations

import multiprocessing
import os
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pytest
import torch  # noqa: F401

FORK = multiprocessing.get_context("fork")
ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src/gradnorm"
MOST_SECONDS = 300
"""What runs longer hangs, and so is noticed."""


class Mutant(NamedTuple):
    """A break.

    Attributes:
        file: Below `src/gradnorm`.
        text: What stands there, once.
        replacement: What stands there instead.
        tests: pytest's arguments, without `tests/`.
    """

    file: str
    text: str
    replacement: str
    tests: str


BALANCER = "unit/test_balancer.py"
RULES = "unit/test_rules.py"
SILENCE = "unit/test_silence.py"
WINDOW = "unit/capture/test_window.py"
BRANCHES = "unit/capture/test_branches.py"
ALONE = "unit/capture/test_alone.py"
CASES = "unit/capture/test_cases.py"
LIFETIME = "unit/capture/test_lifetime.py"
FOREIGN = "unit/capture/test_foreign.py"
SHARED = "unit/capture/test_shared.py"
ARCHITECTURES = "unit/capture/test_architectures.py"
PENALTIES = "unit/capture/test_penalties.py"
BY_LOSS = "unit/capture/test_by_loss.py"
STATE = "reliability/test_state.py"
REDUCE = "distributed/test_reduce.py"

MUTANTS = [
    Mutant(
        "_errors.py",
        "while frame.f_back is not None and _package(frame.f_globals) in _NOT_THE_USERS:",
        "for _ in range(1):",
        f"{SILENCE} -k points",
    ),
    Mutant(
        "_silence.py",
        "self._effect.measured(self._gap.tasks)\n        self._gap.clear()",
        "self._effect.measured(self._gap.tasks)",
        SILENCE,
    ),
    Mutant("_silence.py", "if self._gap.was_in_eval:", "if False:", SILENCE),
    Mutant("_silence.py", "if cause.kind not in self._told:", "if not self._told:", SILENCE),
    Mutant(
        "_silence.py",
        "return self.count >= self.limit\n",
        "return self.count >= self.limit and self.cause is None\n",
        SILENCE,
    ),
    Mutant(
        "_silence.py", "if self._gap.cause is not None:\n            return", "if False:\n            return", SILENCE
    ),
    Mutant("_silence.py", "self._limit = self.losses + min(self.losses, RARELY)", "self._limit = 1e9", SILENCE),
    Mutant("_silence.py", "self.has_changed = True\n            self._restart()", "self.has_changed = True", SILENCE),
    Mutant("_silence.py", "bool(self.watched) and all(torch", "bool(self.watched) and any(not torch", SILENCE),
    Mutant("_silence.py", "and not torch.equal(before, self._overflow)", "", SILENCE),
    Mutant("_silence.py", "rtol=1e-5, atol", "rtol=1e-6, atol", SILENCE),
    Mutant("_balancer.py", "self._silence.restart()\n        self._forget()", "self._forget()", SILENCE),
    Mutant("_balancer.py", "self._silence.restart()\n        if self._measured", "if self._measured", SILENCE),
    Mutant("_errors.py", '{"gradnorm", "torch", "accel', '{"gradnorm", "accel', f"{SILENCE} -k points"),
    Mutant("_errors.py", '"lightning", "pytorch_lightning", ', "", f"{SILENCE} -k points"),
    Mutant("capture/_penalties.py", "not _is_number(edge)", "True", PENALTIES),
    Mutant("capture/_penalties.py", "served[node] if node in plain else tasks[node]", "tasks[node]", PENALTIES),
    Mutant("capture/_penalties.py", "mask | tasks[node] & ~others", "mask", PENALTIES),
    Mutant("capture/_detected.py", "return self._everyone in self._used_by.values()", "return True", PENALTIES),
    Mutant("capture/_penalties.py", "or _makes_weight(node, ends.get(node, ()))", "", PENALTIES),
    Mutant("capture/_penalties.py", "not has_input", "True", f"{PENALTIES} {ARCHITECTURES}"),
    Mutant("capture/_layers.py", "if not is_shift(type(node))) or eligible", ") or eligible", SHARED),
    Mutant("capture/_layers.py", " or eligible\n", "\n", SHARED),
    Mutant(
        "capture/_by_loss.py",
        "return cost(roots) < cost(frontier.at for frontier in frontiers)",
        "return False",
        BY_LOSS,
    ),
    Mutant(
        "capture/_backward_pass.py",
        "takes_products and self.measurement.may_run_twice and",
        "takes_products and",
        BY_LOSS,
    ),
    Mutant("capture/_backward_pass.py", "if check and adds_up(", "if check and not found and adds_up(", BY_LOSS),
    Mutant("capture/_backward_pass.py", "sums.scales / look.scales", "sums.scales / sums.factors", FOREIGN),
    Mutant("capture/_self_check.py", "if bool((one - other).norm() >", "if bool((one - one).norm() >", BY_LOSS),
    Mutant("capture/_first_look.py", "self._is_foreign and not is_by_loss", "self._is_foreign", BY_LOSS),
    Mutant("capture/_layers.py", "_union(bits & eligible for", "_union(bits for", SHARED),
    Mutant("capture/_by_loss.py", "frontier.whole is Path.FOREIGN for", "False for", f"{BY_LOSS} {FOREIGN}"),
    Mutant(
        "capture/_backward_pass.py", "if self.graph is not None and self.is_by_loss(self.graph)", "if False", BY_LOSS
    ),
    Mutant("capture/_backward_pass.py", "[factor * weights[task] for task", "[factor for task", BY_LOSS),
    Mutant("capture/_graph.py", "mixing = self._passed_by & self.inner.keys()", "mixing = set()", CASES),
    Mutant("capture/_backward_pass.py", "taken_alone(graph.unmixed(), ", "taken_alone(graph, ", ALONE),
    Mutant(
        "capture/_collectors.py",
        "if part.dim != dim or part.stop != part.start + 1:",
        "if part.stop != part.start + 1:",
        CASES,
    ),
    Mutant(
        "capture/_collectors.py",
        'if part.dim != _index(saved(node, "dim"), len(output_shape(node, 0))):\n        return None\n    start',
        "start",
        CASES,
    ),
    Mutant("capture/_collectors.py", "there is None or there.dim != part.dim:", "there is None:", CASES),
    Mutant("capture/_collectors.py", "if removes or above.dim != below.dim:", "if removes:", CASES),
    Mutant(
        "capture/_layers.py",
        "applied[node] & (common if is_common else ~common & ~before)",
        "applied[node]",
        f"{SHARED} {ARCHITECTURES}",
    ),
    Mutant("capture/_layers.py", "is_plain = _are_plain(operands) and (", "is_plain = (", ARCHITECTURES),
    Mutant("capture/_first_look.py", "if found is not None and has_waited:", "if found is not None:", SHARED),
    Mutant("capture/_first_look.py", "if has_waited:\n", "if False:\n", SHARED),
    Mutant("capture/_first_look.py", "self._opening.undecided) > PATIENCE", "self._opening.undecided) > 10**9", SHARED),
    Mutant(
        "capture/_first_look.py",
        "bool((sums.counts > 0).all()) and self._opening.awaits",
        "self._opening.awaits",
        SHARED,
    ),
    Mutant("capture/_first_look.py", "if sums is not None and not bool(sums.entries.any())", "if False", SHARED),
    Mutant("capture/_first_look.py", " and not idle.equal(sums.counts > 0)", "", SHARED),
    Mutant("capture/_detected.py", "self._waited.update(parts - counted)", "self._waited.update(parts)", SHARED),
    Mutant("capture/_detected.py", " and bool(used.any()):  # or", ":  # or", SHARED),
    Mutant(
        "capture/_detected.py",
        "min(users, default=0) >= min(2, len(self._tasks))",
        "True",
        "unit/capture/test_concatenated.py",
    ),
    Mutant(
        "capture/_detected.py",
        "self._reached_by = weakly_keyed({})",
        "self._reached_by = {}",
        "unit/capture/test_lifetime.py",
    ),
    Mutant("capture/_first_look.py", "if is_wanted or has_waited else None", "if is_wanted else None", SHARED),
    Mutant("capture/_detected.py", " if blocked.isdisjoint(graph.leaves[leaf])]", "]", SHARED),
    Mutant("capture/_first_look.py", " and not layer.has_told_idle", "", "unit/capture/test_concatenated.py"),
    Mutant(
        "capture/_first_look.py",
        "with without_hooks(each for each in inputs if isinstance(each, Tensor)):",
        "if True:",
        SHARED,
    ),
    Mutant("_balancer.py", "self._step_opening.weights = None", "pass", RULES),
    Mutant("_balancer.py", "self._loss_weights.restore_sum()", "pass", RULES),
    Mutant("capture/_detected.py", "if bool(of_tasks.any())]", "]", SHARED),
    Mutant(
        "capture/_detected.py",
        "self._heads, self.parameters, self._here = heads, parameters, here",
        "self.parameters, self._here = parameters, here",
        SHARED,
    ),
    Mutant(
        "capture/_detected.py", "if self._here and leaves == self._looked_at and ", "if self._here and ", ARCHITECTURES
    ),
    Mutant(
        "capture/_detected.py", "self._heads.pop(shared.parameter, None)", "pass", "unit/capture/test_concatenated.py"
    ),
    Mutant("capture/_measurement.py", "self._stay = False", "self._stay = True", WINDOW),
    Mutant("capture/_measurement.py", "self._stay = self._stay or any(", "self._stay = self._stay and any(", WINDOW),
    Mutant("capture/_measurement.py", "is_known = self._stay or self.has_failed", "is_known = self._stay", WINDOW),
    Mutant("capture/_measurement.py", "or self.window.has_moved or", "or", WINDOW),
    Mutant("capture/_measurement.py", "if shared and all(id(parameter)", "if shared and any(id(parameter)", WINDOW),
    Mutant("capture/_measurement.py", " & (sums.factors <= sums.counts).all()", "", f"{WINDOW} -k scaler"),
    Mutant("capture/_measurement.py", '{**self.__dict__, "_attached": None}', "self.__dict__", f"{SILENCE} -k copy"),
    Mutant(
        "capture/_measurement.py", "self.is_complete and other.is_complete", "True", "settings/test_accumulation.py"
    ),
    Mutant(
        "capture/_measurement.py", "if mine.shape[1] < theirs.shape[1]:", "if False:", f"{ARCHITECTURES} -k experts"
    ),
    Mutant("capture/_backward_pass.py", "if self._backward is not None:\n", "if False:\n", WINDOW),
    Mutant(
        "capture/_backward_pass.py", "self.measurement.begin(self._has_run)", "self.measurement.begin(False)", WINDOW
    ),
    Mutant("capture/_meetings.py", "gradient = known + gradient", "gradient = gradient", f"{CASES} -k twice"),
    Mutant(
        "capture/_backward_pass.py",
        "self.measurement.norms(look) * scales.abs()",
        "self.measurement.norms(look)",
        f"{BALANCER} -k first_gradient",
    ),
    Mutant(
        "capture/_backward_pass.py", "self.measurement.check &= not all(", "self.measurement.check &= not len(", FOREIGN
    ),
    Mutant("capture/_hooks.py", "self.adds_up, self.is_partial = True, True", "self.adds_up = True", WINDOW),
    Mutant("capture/_hooks.py", "self._batches, meeting.check = False, None", "pass", f"{CASES} -k not_tried_again"),
    Mutant("capture/_products.py", "each.clone() if path is Path.FOREIGN else each for", "each for", FOREIGN),
    Mutant("capture/_products.py", "with without_hooks(used):\n            ", "if True:\n            ", FOREIGN),
    Mutant("capture/_rows.py", "self._rows.get(task, torch.zeros_like(like))", "self._rows.get(task, like)", RULES),
    Mutant("capture/_rows.py", "if len(found) < self._count else like", "if False else like", BALANCER),
    Mutant("capture/_self_check.py", "return found  # an overflow says nothing", "pass", FOREIGN),
    Mutant("capture/_branches.py", " and changes(rows) == version", "", BRANCHES),
    Mutant("capture/_branches.py", "rows if self._kept is None else self._kept + rows", "rows", BRANCHES),
    Mutant("capture/_branches.py", "self._probe.grad = None  # what", "pass  # what", f"{BRANCHES} -k other_backwards"),
    Mutant("capture/_alone.py", "self._were_found or has_looked", "has_looked", ALONE),
    Mutant("capture/_alone.py", "or has_looked or", "or", ALONE),
    Mutant("capture/_backward_pass.py", "norms(look) * scales.abs()", "norms(look) * scales", FOREIGN),
    Mutant(
        "capture/_alone.py", "        self._until_look = RECHECK\n        return True", "        return True", FOREIGN
    ),
    Mutant("capture/_first_look.py", "outsiders.has_looked()", "outsiders", FOREIGN),
    Mutant("capture/_backward_pass.py", "outsiders.stop_looking()", "outsiders", FOREIGN),
    Mutant("capture/_backward_pass.py", "self.measurement.watches_hooks = False", "pass", FOREIGN),
    Mutant("capture/_backward_pass.py", "(other == 0) & (one != 0)", "(other != one)", FOREIGN),
    Mutant("capture/_alone.py", "self._left[task] = RECHECK", "self._left[task] = 10**9", ALONE),
    Mutant("capture/_alone.py", "bool(torch.isfinite(arrived.norm()))", "True", ALONE),
    Mutant("capture/_alone.py", "each.whole is Path.FOREIGN", "False", ALONE),
    Mutant("capture/_alone.py", " and each.isdisjoint(frontier.at for frontier in own)", "", ALONE),
    Mutant(
        "capture/_backward_pass.py",
        "self._alone = self._rows, None, _NONE, {}",
        "self._alone = self._rows, None, _NONE, self._alone",
        ALONE,
    ),
    Mutant("capture/_branches.py", "self._keep(self._probe.grad)", "pass", f"{BRANCHES} -k micro_batches"),
    Mutant("capture/_backward_pass.py", "self.graph, None  # hooks", "self.graph, self.graph  # hooks", LIFETIME),
    Mutant(
        "capture/_measurement.py", "return shared if shared and", "return shared if False and", f"{WINDOW} -k changes"
    ),
    Mutant(
        "_balancer.py",
        "/ sums.scales.abs()\n        present",
        "/ (sums.factors * self.weights).abs()\n        present",
        f"{WINDOW} -k late",
    ),
    Mutant(
        "capture/_layers.py",
        "common if is_common else ~common & ~before",
        "common | ~before",
        f"{SHARED} -k derivative",
    ),
    Mutant(
        "capture/_measurement.py",
        "factor * weights.to(ctx.dtype)",
        "(factor * weights).to(ctx.dtype)",
        f"{BALANCER} -k rounded",
    ),
    Mutant(
        "_balancer.py",
        "self._silence.restart()\n        self._forget()",
        "self._silence.restart()",
        f"{BALANCER} -k measured_before",
    ),
    Mutant(
        "_balancer.py",
        "super()._after_load()\n        self._forget()",
        "super()._after_load()",
        f"{BALANCER} -k measured_before",
    ),
    Mutant(
        "_balancer.py", "self._measurement.moved(self.weights)", "self._measurement.clear()", f"{BRANCHES} -k double"
    ),
    Mutant("_balancer.py", "self._measurement.moved(self.weights)", "pass", f"{BALANCER} -k measured_before"),
    Mutant("_balancer.py", "weights = self.weights.clone()", "weights = self.weights", BALANCER),
    Mutant("_balancer.py", 'getattr(optimizer, "found_inf", None)', "None", f"{BALANCER} -k fused"),
    Mutant("_balancer.py", "self._step_opening = None\n        self._called", "self._called", SHARED),
    Mutant(
        "_loss_weights.py",
        "float(len(self.tasks))))\n        self.abandon_opening()",
        "float(len(self.tasks))))",
        RULES,
    ),
    Mutant("_loss_weights.py", "opened |= fresh & ((raw_norms > 0) | is_late)", "opened |= fresh", RULES),
    Mutant("_loss_weights.py", "tries >= MOST_TRIES - 1", "False", RULES),
    Mutant("_loss_weights.py", "self._tries[task] += 1", "pass", RULES),
    Mutant("_loss_weights.py", "not bool(torch.isfinite(raw_norms[fresh]).all()) or ", "", RULES),
    Mutant("_loss_weights.py", "~(usable | is_waiting).all()", "~usable.all()", BALANCER),
    Mutant(
        "_loss_weights.py",
        "return counts > self._initial_steps - 0.5",
        "return counts >= self._initial_steps",
        f"{STATE} -k fractions",
    ),
    Mutant("_loss_weights.py", "losses = torch.where(found_inf == 0, losses, torch.nan)", "pass", RULES),
    Mutant("_loss_weights.py", "accepted, bad = accepted & (found_inf == 0), bad", "bad = bad", f"{BALANCER} -k fused"),
    Mutant(
        "_loss_weights.py",
        "accepted & (found_inf == 0), bad & (found_inf == 0)",
        "accepted & (found_inf == 0), bad",
        RULES,
    ),
    Mutant("_loss_weights.py", "usable = usable | ~present", "pass", BALANCER),
    Mutant("_loss_weights.py", 'self._initial["_priorities"] = _tensor', "_ = _tensor", RULES),
    Mutant(
        "_loss_weights.py",
        "super().reset_parameters()\n        self._tries = [0] * len(self.tasks)",
        "super().reset_parameters()",
        RULES,
    ),
    Mutant(
        "_loss_weights.py",
        "self._knows_initial = bool(self._has_initial(self._value(",
        "_ = bool(self._has_initial(self._value(",
        f"{STATE} -k start",
    ),
    Mutant("_updates.py", "if is_complete else _total(before, accepted)", "", BALANCER),
    Mutant(
        "_updates.py",
        "rule.renormalize(present, total, self.min_weight, is_complete)",
        "rule.renormalize(present, total, 0.0, is_complete)",
        RULES,
    ),
    Mutant("_updates.py", "seen = accepted & (raw_norms > 0)", "seen = accepted", RULES),
    Mutant("_updates.py", "if has_begun:", "if False:", BALANCER),
    Mutant("_updates.py", "torch.where(shared.amin() > 0, shared, weights)", "shared", RULES),
    Mutant(
        "_updates.py", "torch.where(self._averages[2] > 0, self._corrected()[0].sqrt(), raw_norms)", "raw_norms", RULES
    ),
    Mutant(
        "_updates.py",
        "torch.where(self._averages[2] > 0, self._corrected()[0].sqrt(), raw_norms)",
        "self._corrected()[0].sqrt()",
        RULES,
    ),
    Mutant(
        "_updates.py",
        "rule.bounded_rates(rule.inverse_training_rates(ratios))",
        "rule.inverse_training_rates(ratios)",
        RULES,
    ),
    Mutant("_updates.py", "mine = copy.deepcopy(self)", "mine = self", RULES),
    Mutant(
        "_optimizer.py", "torch.where(accept if value.dim() else accept.any(), value, old, out=value)", "pass", BALANCER
    ),
    Mutant(
        "_optimizer.py", "torch.where(accept, gradients, 0.0) if accept.dim() else gradients", "gradients", BALANCER
    ),
    Mutant("_optimizer.py", "((after > 0) | ~accept).all()", "True", RULES),
    Mutant("_optimizer.py", "steps.zero_()", "pass", BALANCER),
    Mutant("_optimizer.py", "weights.copy_(before)", "pass", BALANCER),
    Mutant("_optimizer.py", "for _ in range(3):", "for _ in range(1):", f"{STATE} -k scheduler"),
    Mutant(
        "_optimizer.py",
        "            return  # a scheduler may have",
        "            pass  # a scheduler may have",
        f"{STATE} -k scheduler",
    ),
    Mutant("_optimizer.py", 'the buffer."""\n        self._note()', 'the buffer."""', f"{STATE} -k scheduler"),
    Mutant("_optimizer.py", "else taken[0]\n        self._note()", "else taken[0]", f"{STATE} -k scheduler"),
    Mutant(
        "_state.py",
        "value.detach().to(tensor.dtype, copy=True)",
        "value.detach().to(tensor.dtype)",
        f"{STATE} -k assigned",
    ),
    Mutant("_state.py", "state._loaded.clear()\n                state._read()", "state._read()", f"{STATE} -k part"),
    Mutant("_state.py", 'if layout != _bytes(self._initial["_layout"]):', "if False:", f"{STATE} -k another_rule"),
    Mutant("_state.py", ".abs() < 0.25).all()", ".abs() < 0.75).all()", f"{STATE} -k bits"),
    Mutant("_state.py", "if self._names.is_meta and not was_meta:", "if False:", f"{STATE} -k built"),
    Mutant(
        "_state.py",
        "dtype = new.dtype if at_least_float32(new).dtype == new.dtype else old.dtype",
        "dtype = new.dtype",
        BALANCER,
    ),
    Mutant("_state.py", "sealed[:1] != _GUARD or ", "", f"{STATE} -k freed"),
    Mutant("_state.py", "self._names._version == self._version or (", "True or (", f"{STATE} -k 'place or damaged'"),
    Mutant(
        "_silence.py",
        "return known.is_frozen and self.is_meant",
        "return known.is_frozen",
        SILENCE,
    ),
    Mutant("_silence.py", "step follows\n            self._gap.is_pending = True", "step follows", SILENCE),
    Mutant("_silence.py", "self._found_inf = found_inf", "pass", SILENCE),
    Mutant("_silence.py", "if bool(sums.counts.max() <= 1) else None", "", SILENCE),
    Mutant("_silence.py", "if self.was_refused or any(", "if any(", SILENCE),
    Mutant("_silence.py", "self._updates < FEWEST_UPDATES or (not", "(not", SILENCE),
    Mutant(
        "_distributed.py", "dist.all_reduce(flat, group=group)", "dist.all_reduce(flat)", f"{REDUCE} -k process_group"
    ),
    Mutant("_distributed.py", "found[0] == -found[1]", "found[0] == found[0]", f"{REDUCE} -k different"),
    Mutant(
        "_distributed.py", "part.reshape(-1).to(wide)", "part.reshape(-1).to(torch.bfloat16)", f"{REDUCE} -k equal_one"
    ),
]


def survives(mutant: Mutant, copy: Path) -> bool:
    """Whether the tests pass on `copy`, the library with this break."""
    place = copy / "gradnorm" / mutant.file
    whole = place.read_text(encoding="utf-8")
    assert whole.count(mutant.text) == 1, f"{mutant.file} holds {mutant.text!r} not once"
    place.write_text(whole.replace(mutant.text, mutant.replacement), encoding="utf-8")
    # A fork, in which torch is loaded already.
    process = FORK.Process(target=_run, args=(copy, mutant.tests))
    process.start()
    process.join(MOST_SECONDS)
    place.write_text(whole, encoding="utf-8")
    if process.is_alive():
        process.kill()
        return False
    assert process.exitcode not in (4, 5), f"no such tests: {mutant.tests}"
    return process.exitcode == 0


def _run(copy: Path, tests: str) -> None:
    sys.path.insert(0, str(copy))
    os.environ["PYTHONPATH"] = str(copy)
    sys.dont_write_bytecode = True  # a break of the same size, within one second, would look like the one before
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)
    arguments = [f"tests/{part}" if "/" in part else part for part in shlex.split(tests)]
    sys.exit(pytest.main(["-x", "-q", "-p", "no:cacheprovider", f"--rootdir={ROOT}", *arguments]))


def main(words: Sequence[str]) -> int:
    os.chdir(ROOT)
    chosen = [mutant for mutant in MUTANTS if all(any(word in part for part in mutant) for word in words)]
    survivors = []
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        shutil.copytree(SOURCE, copy / "gradnorm", ignore=shutil.ignore_patterns("__pycache__"))
        for tests in dict.fromkeys(mutant.tests for mutant in chosen):
            assert survives(Mutant("__init__.py", "__version__ =", "__version__ =", tests), copy), (
                f"nothing is broken yet, and a test fails: {tests}"
            )
        for mutant in chosen:
            began = time.monotonic()
            is_alive = survives(mutant, copy)
            survivors += [mutant] * is_alive
            said = "SURVIVED" if is_alive else "killed"
            change = f"{mutant.text!r} → {mutant.replacement!r}"
            print(f"{said}\t{time.monotonic() - began:.0f} s\t{mutant.file}\t{change}", flush=True)
    print(f"{len(survivors)} of {len(chosen)} survived")
    return bool(survivors)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
