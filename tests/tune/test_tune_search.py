"""tune/search.py with made-up trials: independence of studies, resume, rungs, budgets, comparison, failures."""

from __future__ import annotations

import json
import multiprocessing
import random
import time
from pathlib import Path

import pytest
from formula_studies import FormulaBackend, score, search, suggestions

from moe_dist.errors import UserError
from moe_dist.tune.search import Search, SearchedStudy, run_here
from moe_dist.tune.trials import LOST, Outcome, Round, Trial

FORK = multiprocessing.get_context("fork")


def finished(folder: Path, experts: list[int], **settings) -> Search:
    found = search(folder, experts, **settings)
    run_here(found, FormulaBackend().run)
    return found


def test_an_expert_is_suggested_the_same_with_and_without_the_other_42(tmp_path):
    among = suggestions(finished(tmp_path / "all", list(range(43)), together=5, trials=6))
    for expert in (0, 17, 42):
        alone = suggestions(finished(tmp_path / str(expert), [expert], trials=6))
        assert alone[str(expert)] == among[str(expert)]
    assert among["0"] != among["1"]


def test_the_seed_and_own_results_decide_the_suggestions(tmp_path):
    first = suggestions(finished(tmp_path / "0", [3]))
    assert suggestions(finished(tmp_path / "again", [3])) == first
    assert suggestions(finished(tmp_path / "1", [3], seed=1)) != first


def test_the_order_in_which_rounds_come_back_changes_nothing(tmp_path):
    found, backend, draw = search(tmp_path / "mixed", [0, 1, 2, 3]), FormulaBackend(), random.Random(0)
    out: list[Round] = []
    while True:
        while (work := found.next_round()) is not None:
            out.append(work)
        if not out:
            break
        work = out.pop(draw.randrange(len(out)))
        found.tell(work, backend.run(work))
    assert suggestions(found) == suggestions(finished(tmp_path / "ordered", [0, 1, 2, 3]))


def test_learning_from_results_beats_random_draws(tmp_path):
    """Mean score of the last ten of 25 trials: a sampler that is told nothing would do no better."""

    def mean_last(sampler: str) -> float:
        found = finished(tmp_path / sampler, [0, 5], trials=25, batch=5, sampler=sampler, rungs=())
        last = [outcome for each in found.studies.values() for outcome in each.study.outcomes[-10:]]
        return sum(outcome.last.score for outcome in last) / len(last)

    assert mean_last("tpe") > mean_last("random") + 0.1


def test_a_longer_search_compares_its_new_best(tmp_path):
    short = finished(tmp_path, [3], trials=2, batch=2, compared=(7,), rungs=()).studies["3"]
    assert compared_best(short) == best_score(short)
    longer = finished(tmp_path, [3], trials=14, batch=2, compared=(7,), rungs=()).studies["3"]
    assert best_score(longer) > best_score(short)
    assert compared_best(longer) == best_score(longer)


def compared_best(each: SearchedStudy) -> float:
    """The score of what was trained again; a formula's trial scores the same from every seed."""
    return each.compared[7][1].last.score


def best_score(each: SearchedStudy) -> float:
    return score(each.study.name, each.study.trials[each.study.best].values)


def go_on(folder: Path, seconds: float) -> None:
    found = search(folder, [0, 1, 2], trials=12, batch=3, compared=(7,))
    run_here(found, FormulaBackend(seconds=seconds).run)


def test_killed_five_times_it_ends_as_one_that_never_was(tmp_path):
    """kill -9 at random moments of a search of 15 rounds; no trial that was finished is run again."""
    draw = random.Random(1)
    for _ in range(5):
        process = FORK.Process(target=go_on, args=(tmp_path / "killed", 0.02))
        process.start()
        time.sleep(draw.uniform(0.03, 0.15))
        process.kill()
        process.join()
    go_on(tmp_path / "killed", 0)
    go_on(tmp_path / "unbroken", 0)

    def trials(name: str) -> list:
        found = search(tmp_path / name, [0, 1, 2], compared=(7,))
        assert found.next_round() is None
        return [(each.study.trials, each.study.outcomes, each.compared) for each in found.studies.values()]

    assert trials("killed") == trials("unbroken")
    records = [json.loads(line) for line in (tmp_path / "killed" / "journal.jsonl").read_text().splitlines()[1:]]
    asked = [(record["study"], trial["number"]) for record in records for trial in record.get("asked", [])]
    assert len(asked) == len(set(asked)) == 36
    told = [record["study"] for record in records if "told" in record and "compared" not in record]
    assert len(told) == 12


def test_a_trial_without_an_outcome_is_run_again(tmp_path):
    first = search(tmp_path, [0, 1])
    asked = first.next_round()
    again = search(tmp_path, [0, 1]).next_round()
    assert again.batches == asked.batches


def test_a_line_cut_short_by_a_kill_is_as_if_never_written(tmp_path):
    found = search(tmp_path, [0])
    work = found.next_round()
    found.tell(work, FormulaBackend().run(work))
    path = tmp_path / "journal.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[:-30])
    torn = search(tmp_path, [0])
    assert torn.finished == 0
    assert torn.next_round().batches == work.batches
    torn.tell(work, FormulaBackend().run(work))
    assert search(tmp_path, [0]).finished == 3


def test_a_journal_of_another_search_is_refused(tmp_path):
    search(tmp_path, [0], seed=0)
    with pytest.raises(UserError, match=r"journal.jsonl: is the journal of another search, which differs in seed;"):
        search(tmp_path, [0], seed=1)
    (tmp_path / "journal.jsonl").write_text('{"a": 1}\n')
    with pytest.raises(UserError, match="is not a journal of a search"):
        search(tmp_path, [0])
    (tmp_path / "journal.jsonl").write_text("what\n")
    with pytest.raises(UserError, match="line 1 is not a record of a search"):
        search(tmp_path, [0])
    (tmp_path / "journal.jsonl").unlink()
    search(tmp_path, [0], seed=0)
    with (tmp_path / "journal.jsonl").open("a") as file:
        file.write('{"study": "0"}\n')
    with pytest.raises(UserError, match="line 2 is not a record of a search"):
        search(tmp_path, [0])


def test_rungs_are_of_one_study_alone(tmp_path):
    """Study 0's scores are far above study 1's; still, each stops the same share of its own trials."""

    class Unequal(FormulaBackend):
        seen: dict[str, set] = {}  # noqa: RUF012

        def run(self, work: Round) -> list[list[Outcome]]:
            for batch in work.batches:
                self.seen.setdefault(batch.study, set()).update(batch.rungs[2])
            return super().run(work)

    backend = Unequal()
    found = search(tmp_path, [0, 16], trials=9, together=2)
    run_here(found, backend.run)
    for name, each in found.studies.items():
        own = {outcome.curve[1].sort_key for outcome in each.study.outcomes}
        assert backend.seen[name] and backend.seen[name] <= own
        assert {outcome.state for outcome in each.study.outcomes} == {"finished", "stopped"}


def test_the_fair_budget_goes_round(tmp_path):
    found = search(tmp_path, [0, 1, 2], trials=5, batch=2)
    order = []
    while (work := found.next_round()) is not None:
        order += [(batch.study, len(batch.trials)) for batch in work.batches]
        found.tell(work, FormulaBackend().run(work))
    assert order == [(str(e), 2) for e in range(3)] * 2 + [(str(e), 1) for e in range(3)]


def test_expected_gain_gives_more_trials_to_those_that_still_win(tmp_path):
    """Study 1 scores 1 from the start and has nothing to win."""

    def run(work: Round) -> list[list[Outcome]]:
        outcomes = FormulaBackend().run(work)
        perfect = FormulaBackend().run(work)[0][0].curve[-1]
        solved = Outcome("finished", (type(perfect)(4, 1.0, 0.0),))
        return [
            [solved] * len(batch.trials) if batch.study == "1" else own for batch, own in zip(work.batches, outcomes)
        ]

    found = search(tmp_path, [0, 1, 2], trials=12, batch=3, sharing="gain")
    run_here(found, run)
    counts = {name: len(each.study.trials) for name, each in found.studies.items()}
    assert sum(counts.values()) == 36
    assert counts["1"] == 3


def test_the_time_budget_ends_the_search_and_counts_earlier_runs(tmp_path, monkeypatch):
    """Rounds of 3 s: the seventh begins at 18 s of 20, and ends the search."""
    now = [100.0]
    monkeypatch.setattr("moe_dist.tune.search.time.monotonic", lambda: now[0])

    def three_seconds(work: Round) -> list[list[Outcome]]:
        now[0] += 3
        return FormulaBackend().run(work)

    found = search(tmp_path, [0, 1], trials=None, seconds=20, batch=1)
    for _ in range(4):
        work = found.next_round()
        found.tell(work, three_seconds(work))
    now[0] += 1_000  # the machine is off
    again = search(tmp_path, [0, 1], trials=None, seconds=20, batch=1)
    run_here(again, three_seconds)
    assert again.finished == 7


def test_the_best_is_compared_with_the_default_from_other_seeds(tmp_path):
    found = finished(tmp_path, [5], compared=(1, 2))
    each = found.studies["5"]
    best = each.study.trials[each.study.best].values
    assert set(each.compared) == {1, 2}
    default, tuned = each.compared[1]
    assert tuned.last.score == pytest.approx(score("5", best))
    assert default.last.score == pytest.approx(score("5", {"width": 8, "rate": 1e-3, "kind": "sgd"}))
    assert len(each.study.outcomes) == 12


def test_a_failed_trial_is_kept_with_its_reason_and_is_never_the_best(tmp_path):
    def run(work: Round) -> list[list[Outcome]]:
        outcomes = FormulaBackend().run(work)
        return [[Outcome("failed", reason="out of memory"), *own[1:]] for own in outcomes]

    found = search(tmp_path, [0])
    run_here(found, run)
    again = search(tmp_path, [0]).studies["0"].study
    assert [outcome.reason for outcome in again.outcomes[::3]] == ["out of memory"] * 4
    assert again.best is not None and again.best % 3 != 0
    assert again.trials == found.studies["0"].study.trials
    assert isinstance(again.trials[0], Trial)


DIED = Outcome("failed", reason=LOST)


def test_trials_whose_worker_died_are_run_by_the_next_run_alone(tmp_path):
    """Trial 4 of study 1 and its batch are lost; the run itself goes on without them, and the next one runs them."""
    backend = FormulaBackend()

    def dying(work: Round) -> list[list[Outcome]]:
        outcomes = backend.run(work)
        for place, batch in enumerate(work.batches):
            if batch.study == "1" and 4 in [trial.number for trial in batch.trials]:
                outcomes[place] = [DIED] * len(batch.trials)
        return outcomes

    first = search(tmp_path, [0, 1], trials=9, batch=3, rungs=())
    run_here(first, dying)
    assert (first.finished, first.lost) == (15, 3)
    assert len(first.studies["1"].study.trials) == 9, "it went on without them"
    again = search(tmp_path, [0, 1], trials=9, batch=3, rungs=())
    work = again.next_round()
    (batch,) = work.batches
    assert (batch.study, [trial.number for trial in batch.trials]) == ("1", [3, 4, 5])
    assert batch.trials == tuple(first.studies["1"].study.trials[3:6]) and again.next_round() is None
    again.tell(work, backend.run(work))
    for found in (again, search(tmp_path, [0, 1], trials=9, batch=3, rungs=())):
        assert (found.finished, found.lost) == (18, 0) and found.next_round() is None
        assert {outcome.state for outcome in found.studies["1"].study.outcomes} == {"finished"}


def test_trials_that_failed_by_themselves_are_not_run_again(tmp_path):
    found = search(tmp_path, [0], trials=3, batch=3)
    run_here(found, lambda work: [[Outcome("failed", reason="ValueError: no")] * 3])
    again = search(tmp_path, [0], trials=3, batch=3)
    assert again.next_round() is None and again.finished == 3


def test_a_comparison_whose_worker_died_is_made_by_the_next_run(tmp_path):
    backend = FormulaBackend()
    first = search(tmp_path, [0], trials=3, batch=3, compared=(7,))
    run_here(first, lambda work: [[DIED, DIED]] if work.batches[0].rungs is None else backend.run(work))
    again = search(tmp_path, [0], trials=3, batch=3, compared=(7,))
    (batch,) = again.next_round().batches
    assert (batch.rungs, batch.seed) == (None, 7)


def test_a_better_lost_trial_is_compared_anew(tmp_path):
    """The best trial was lost, and another one compared; tried again, it is the best and compared itself."""
    settings = {"trials": 6, "batch": 1, "rungs": (), "compared": (7,), "sampler": "random"}
    values = suggestions(finished(tmp_path / "whole", [3], **settings))["3"]
    best = max(range(6), key=lambda number: score("3", values[number]))
    backend = FormulaBackend()

    def dying(work: Round) -> list[list[Outcome]]:
        asked = work.batches[0]
        return [[DIED]] if asked.rungs is not None and asked.trials[0].number == best else backend.run(work)

    run_here(search(tmp_path / "lost", [3], **settings), dying)
    again = search(tmp_path / "lost", [3], **settings)
    run_here(again, backend.run)
    each = again.studies["3"]
    assert each.study.best == best and compared_best(each) == best_score(each)
