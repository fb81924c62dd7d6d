"""What is found below a folder."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from logs import EventLog, config, published, write_run, write_search
from short_runs import train

from hyperopt_id.analysis import repetitions
from hyperopt_id.analysis.collect import collect

LOSSES = {"loss/test": [[2.0, 4.0], [1.0, 3.0]]}


def test_runs_searches_and_events_are_found_at_any_depth(tmp_path: Path):
    write_run(tmp_path / "a" / "b" / "first", config("Ours_LR"), LOSSES)
    write_run(tmp_path / "a" / "second", config("Ours_LR", seed=2), LOSSES)
    search = write_search(tmp_path / "c" / "search", "BayesOpt", [(0, 1.0, 2.0)], config("Random_Validation"))
    write_run(search / "runs" / "one", config("Random_Validation"), LOSSES)  # chosen, not an independent start
    events = EventLog(tmp_path / "d" / "2021 run")
    events.scalar("Loss/Test", 30, 7.0)
    events.close()
    (tmp_path / "d" / "2021 run" / "config.json").write_text(json.dumps(published()))
    for ignored in ("checkpoints", "trace", "member_00", "members_p90", "cache", ".hidden"):
        write_run(tmp_path / ignored, config("Baydin"), LOSSES)
    found = collect([tmp_path])
    assert [(k.algorithm, len(k)) for k in found.kinds] == [("Ours_LR", 4), ("Ours_LR_Momentum", 1)]
    assert [search.method for search in found.searches] == ["BayesOpt"]
    assert (found.datasets, found.remarks) == (["uci_energy"], ())


def test_a_run_directory_is_a_folder_of_runs_and_counts_once(tmp_path: Path):
    run = write_run(tmp_path / "run", config("Ours_LR"), LOSSES)
    assert len(collect([run, run, tmp_path]).kinds[0]) == 2


def test_what_is_not_finished_is_left_out_and_said(tmp_path: Path):
    write_run(tmp_path / "done", config("Ours_LR"), LOSSES)
    for name in ("going", "on"):
        write_run(tmp_path / name, config("Baydin"), LOSSES, finished=False)
    write_search(tmp_path / "s", "PBT", [(0, 1.0, 2.0)], config("Random")).joinpath("summary.json").unlink()
    found = collect([tmp_path])
    assert [k.algorithm for k in found.kinds] == ["Ours_LR"]
    assert found.searches == ()
    assert found.remarks == (f"not finished, left out: {tmp_path / 'going'} and 2 more",)


def test_runs_that_are_there_twice_are_said(tmp_path: Path):
    for name in "ab":
        write_run(tmp_path / name, config("Ours_LR"), LOSSES)
    assert collect([tmp_path]).remarks == (
        "2 runs are there more than once (same config, seed and start) and are counted once",
    )


def test_a_config_that_is_only_there_as_yaml_is_said_and_nothing_is_selected(tmp_path: Path):
    run = write_run(tmp_path / "data" / "mine", config("Ours_LR"), {**LOSSES, "loss/validation": LOSSES["loss/test"]})
    (run / "config.json").rename(run / "config.yaml")
    found = collect([tmp_path])
    assert [(kind.dataset, kind.algorithm) for kind in found.kinds] == [("data", "mine")]
    assert np.isnan(found.kinds[0].validation).all()
    assert found.remarks == (
        f"no config.json beside config.yaml, named after folders and without what is selected: {run}",
    )


def test_searches_are_looked_at_as_often_as_their_runs_reported(tmp_path: Path):
    """The last report is worse than the one before, which a method that looks at every report would have kept."""
    search = write_search(tmp_path / "s", "BayesOpt", [(0, 0.9, 9.0), (0, 0.8, 8.0)], config("Random_Validation"))
    reports = [
        {"step": 20, "time": 1.0, "loss/validation": [0.5, 0.7], "loss/test": [5.0, 1.0]},
        {"step": 40, "time": 2.0, "loss/validation": [0.9, 0.8], "loss/test": [9.0, 8.0]},
    ]
    (search / "runs/all/metrics.jsonl").write_text("".join(json.dumps(report) + "\n" for report in reports))
    (found,) = collect([tmp_path]).searches
    assert [line["gradients"] for line in found.evaluations[0]] == [50.0, 100.0, 150.0, 200.0]
    assert found.final("loss/test").tolist() == [5.0]
    (search / "runs/all/metrics.jsonl").unlink()
    without = collect([tmp_path])
    assert without.searches[0].final("loss/test").tolist() == [8.0]
    assert without.remarks == (f"the runs of a search are not there, so that only what it logged counts: {search}",)


@pytest.mark.parametrize(
    ("name", "message"),
    [("nowhere", "there is no folder .+nowhere"), ("empty", "empty holds no runs: nothing below it")],
)
def test_a_folder_without_runs_is_named(tmp_path: Path, name: str, message: str):
    (tmp_path / "empty" / "deep").mkdir(parents=True)
    EventLog(tmp_path / "empty" / "events").close()  # without a config, nobody knows of what
    with pytest.raises(ValueError, match=message):
        collect([tmp_path / name])


@pytest.mark.parametrize("count", [3, 33])
def test_populations_without_reports_are_read_by_their_members_or_said(tmp_path: Path, count: int):
    run = train(tmp_path / "run", f"population.runs={count}", "inner.updates=2", "report.splits=[validation,test]")
    expected = collect([tmp_path]).kinds[0].final("loss/test")
    (run / "metrics.jsonl").unlink()
    found = collect([tmp_path])
    if count == 3:
        (runs,) = found.kinds
        np.testing.assert_array_equal(runs.final("loss/test"), expected.astype(np.float32))
        assert found.remarks == ()
    else:
        assert found.kinds == ()
        assert found.remarks == (
            f"no metrics.jsonl, and TensorBoard has quantiles over the members alone, left out: {run}",
        )


def test_data_are_known_by_their_digest_and_not_by_their_path(tmp_path: Path):
    """Two tables of one name in two folders, and one of them moved."""
    for number, (path, digest) in enumerate([("a/t.csv", "1" * 64), ("b/t.csv", "2" * 64), ("moved/t.csv", "1" * 64)]):
        about = config("Ours_LR", task__path=path, seed=10 * number)
        run = write_run(tmp_path / str(number), about, {"loss/test": [[float(digest[0])] * 2]})
        (run / "identity.json").write_text(json.dumps({"format": 1, "digests": {"data": digest}}))
        search = write_search(tmp_path / f"s{number}", "PBT", [(0, 1.0, 2.0)], about)
        shutil.copy(run / "identity.json", search / "runs" / "all")
    found = collect([tmp_path])
    assert {kind.dataset: kind.final("loss/test").tolist() for kind in found.kinds} == {
        "t-11111111": [1.0] * 4,
        "t-22222222": [2.0] * 2,
    }
    assert [len(repetitions.searches(found, name)["PBT"].incumbents) for name in found.datasets] == [2, 1]
    assert found.remarks == ("2 different data sets are called t, and are told apart by the beginning of their digest",)


def test_links_in_circles_are_followed_once(tmp_path: Path):
    write_run(tmp_path / "runs" / "one", config("Ours_LR"), LOSSES)
    for name in "abcdef":
        (tmp_path / "runs" / name).symlink_to(tmp_path / "runs", target_is_directory=True)
    assert [len(kind) for kind in collect([tmp_path]).kinds] == [2]


def test_a_search_whose_log_names_a_run_elsewhere_is_left_out(tmp_path: Path):
    write_run(tmp_path / "outside", config("Ours_LR"), LOSSES)
    search = write_search(tmp_path / "s", "PBT", [(0, 1.0, 2.0)], config("Random"))
    log = search / "search.jsonl"
    log.write_text(log.read_text().replace("runs/all", "../outside"))
    found = collect([tmp_path])
    assert found.searches == ()
    assert len(found.remarks) == 1
    assert found.remarks[0].startswith(f"left out: line 1 of {log}: run: needs the path of a folder below the search")
