"""Override generators against jobs written by hand."""

import json
import math
import re
from pathlib import Path

import pytest
from override_generators import GENERATORS, Job, generate
from short_runs import CONFIGS

from hyperopt_id.build.names import from_config, run_seeds, starting_values
from hyperopt_id.config import dump, from_dict, load, to_dict
from hyperopt_id.config_schema import Config

DRAWN = "population.sample=true"


def base(*stems: str, overrides: tuple[str, ...] = ()) -> Config:
    return load([CONFIGS / f"{stem}.yaml" for stem in ("digits", *stems)], overrides)


def test_natural_sgd_draws_every_start():
    assert generate("natural_sgd", base("Random"), 3, 7, []) == [Job("", (DRAWN,), (7, 8, 9))]
    assert generate("natural_sgd", base("Random"), None, 7, []) == [Job("", (DRAWN,), (7,))]


# (T, K)


def test_sensitivity_varies_terms_freely():
    jobs = generate("sensitivity", base("Ours_LR_Momentum"), 2, 0, ["2"])
    assert jobs == [
        Job(
            f"T0{t}_K0{k}",
            (DRAWN, f"inner.steps_per_update={t}", "inner.updates=200", f"hypergradient.terms={k}"),
            (0, 1),
        )
        for t, k in [(1, 1), (1, 2), (2, 1), (2, 2)]
    ]


def test_sensitivity_has_windows_up_to_the_steps():
    jobs = generate("sensitivity", base("DiffThroughOpt"), 1, 5, ["3"])
    assert [job.label for job in jobs] == ["T01_K01", "T02_K01", "T02_K02", "T03_K01", "T03_K02", "T03_K03"]
    overrides = (DRAWN, "inner.steps_per_update=3", "inner.updates=200", "hypergradient.window=2")
    assert jobs[4] == Job("T03_K02", overrides, (5,))


def test_sensitivity_has_an_algorithm_without_engine_once():
    assert generate("sensitivity", base("Random"), 2, 0, []) == [Job("", (DRAWN,), (0, 1))]


@pytest.mark.parametrize("algorithm, count", [("Ours_LR_Momentum", 100), ("DiffThroughOpt", 55)])
@pytest.mark.parametrize("updates", [400, 3])
def test_every_variation_of_the_sensitivity_is_a_config_of_equal_updates(algorithm: str, count: int, updates: int):
    files = [CONFIGS / "uci_energy.yaml", CONFIGS / f"{algorithm}.yaml"]
    overrides = [f"inner.steps={updates * 10}"]
    jobs = generate("sensitivity", load(files, overrides), 1, 0, [])
    assert len(jobs) == count
    for job in jobs:
        config = load(files, [*overrides, *job.overrides])
        assert config.inner.total_updates == updates
        size = config.hypergradient.terms if algorithm == "Ours_LR_Momentum" else config.window
        assert job.label == f"T{config.inner.steps_per_update:02d}_K{size:02d}"


def test_hypergradients_are_compared_where_nothing_moves():
    jobs = generate("hypergradient_accuracy", base("DiffThroughOpt"), 2, 0, ["3"])
    assert [job.label for job in jobs] == ["T01_K01", "T02_K01", "T02_K02", "T03_K01", "T03_K02", "T03_K03"]
    files = [CONFIGS / "digits.yaml", CONFIGS / "DiffThroughOpt.yaml"]
    for job in jobs:
        config = load(files, job.overrides)
        assert (config.meta.rule, config.report.every, config.inner.total_updates) == ("none", 1, 5)
        assert {hyper.bounds for hyper in config.space.values()} == {"none"}
        assert job.label == f"T{config.inner.steps_per_update:02d}_K{config.window:02d}"
    neumann = generate("hypergradient_accuracy", base("Ours_LR"), 2, 0, ["3"])
    assert [job.label for job in neumann] == [job.label for job in jobs]


# Starting values


def test_grid_has_every_point_for_every_repetition():
    (job,) = generate("grid", base("Random"), 2, 10, ["lr=1e-4:1e-2:3", "momentum=0:0.5:2"])
    assert job.overrides == ("population.sample=false",)
    assert job.seeds == tuple(range(10, 22))
    rates = [1e-4, 1e-4, 1e-3, 1e-3, 1e-2, 1e-2] * 2
    assert job.values["lr"] == pytest.approx(rates)
    assert job.values["momentum"] == (0.0, 0.5) * 6


def test_validation_fractions_are_variations():
    assert generate("validation_fraction", base("Random"), 2, 0, ["0.11", "0.5"]) == [
        Job("validation0.11", (DRAWN, "task.validation_fraction=0.11"), (0, 1)),
        Job("validation0.5", (DRAWN, "task.validation_fraction=0.5"), (0, 1)),
    ]


def population(folder: Path, seed: int, runs: int, **start: list[float]) -> Config:
    """Write the config of a run directory of earlier runs."""
    tree = {**to_dict(base("Ours_LR")), "seed": seed, "population": {"runs": runs, "sample": True, "start": start}}
    folder.mkdir(parents=True)
    config = from_dict(tree)
    (folder / "config.yaml").write_text(dump(config))
    return config


def test_from_directory_replicates_values_and_seeds(tmp_path: Path):
    """Of all runs below the directory, each start once however many runs have it, in the order of their seeds."""
    later = population(tmp_path / "a" / "runs_2", 7, 2)
    earlier = population(tmp_path / "b", 2, 3, lr=[0.1, 0.02, 0.003])
    population(tmp_path / "c", 3, 2, lr=[0.02, 0.003])
    (job,) = generate("from_directory", base("Random"), None, 99, [str(tmp_path)])
    assert job.seeds == (2, 3, 4, 7, 8) == (*run_seeds(earlier), *run_seeds(later))
    expected = {name: (*starting_values(earlier)[name], *starting_values(later)[name]) for name in later.space}
    assert job.values == expected
    assert job.values["lr"][:3] == (0.1, 0.02, 0.003)
    (first,) = generate("from_directory", base("Random"), 2, 0, [str(tmp_path)])
    assert first.seeds == (2, 3)


def test_from_directory_reads_the_published_code_s_runs(tmp_path: Path):
    """Their values are raw: log10 of learning rate and weight decay, logit of momentum. The same start of several
    algorithms counts once."""
    for name, momentum in [("2022-01-01 Random", 0.0), ("2022-01-02 Ours_LR", 0.0), ("2022-01-03", math.log(4.0))]:
        weights = {"class": "SGD", "lr": -3.0, "weight_decay": -5.5, "momentum": momentum, "lr_multiplier": 0.98}
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps({"config_dicts": {"network_weight": weights}}))
    (job,) = generate("from_directory", base("Random"), None, 20, [str(tmp_path)])
    assert job.seeds == (20, 21)
    assert job.values == {
        "lr": (1e-3, 1e-3),
        "weight_decay": pytest.approx((10**-5.5, 10**-5.5)),
        "momentum": pytest.approx((0.5, 0.8)),
    }


def start_file(folder: Path, number: int, momentum: float = 0.0, multiplier: str = "# ") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"iteration_{number}.yaml").write_text(
        f"config_dicts:\n  network_weight:\n    lr: {-0.25 * number}\n    {multiplier}lr_multiplier: 0.9{number}\n"
        f"    momentum: {momentum}\n    weight_decay: -5.5\n"
    )


def test_from_directory_reads_the_published_starts(tmp_path: Path):
    """By their numbers: 2 before 10. Other YAML files are passed over."""
    for number in (10, 2, 1):
        start_file(tmp_path / "inits", number, momentum=math.log(4.0))
    (tmp_path / "inits" / "other.yaml").write_text("algorithm: Random")
    (job,) = generate("from_directory", base("Random"), None, 20, [str(tmp_path / "inits")])
    assert job.seeds == (20, 21, 22)
    assert job.values == {
        "lr": pytest.approx((10**-0.25, 10**-0.5, 10**-2.5)),
        "weight_decay": pytest.approx((10**-5.5,) * 3),
        "momentum": pytest.approx((0.8,) * 3),
    }


@pytest.mark.parametrize("algorithm", ["Random_SteppedLR", "Random"])
def test_published_starts_of_a_schedule_have_its_factor(tmp_path: Path, algorithm: str):
    """Each run then follows the schedule that its file states, not one drawn from its seed."""
    start_file(tmp_path, 1, multiplier="")
    start_file(tmp_path, 2, multiplier="")
    (job,) = generate("from_directory", base(algorithm), None, 5, [str(tmp_path)])
    if algorithm == "Random":
        assert "factor" not in job.values
        return
    assert job.values["factor"] == (0.91, 0.92)
    tree = to_dict(base(algorithm))
    tree |= {"seed": 5, "population": {"runs": 2, "sample": True, "start": {k: list(v) for k, v in job.values.items()}}}
    parts, _ = from_config(from_dict(tree))
    assert parts.start().meta_hyper["factor"].tolist() == pytest.approx([0.91, 0.92])
    with pytest.raises(ValueError, match=r"population\.start\.factor: given 0\.0; allowed: numbers above 0"):
        from_dict(tree | {"population": {"runs": 2, "sample": True, "start": {"factor": [1.0, 0.0]}}})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "config_dicts: {network_weight: {lr: x}}",
            "cannot be read as a start of the study's published code .lr: needs",
        ),
        ("config_dicts: {network_weight: {lr: 1.0e300}}", "lr: given 1e.300; it is a logarithm or a logit"),
        ("config_dicts: {network_weight: {lr: .nan}}", "lr: given nan; it is a logarithm or a logit"),
        ("a: !!python/object/apply:os.getcwd []", "none of plain data"),
    ],
)
def test_published_starts_that_are_damaged_are_named(tmp_path: Path, text: str, message: str):
    (tmp_path / "iteration_1.yaml").write_text(text)
    with pytest.raises(ValueError, match=rf"iteration_1\.yaml.*{message}"):
        generate("from_directory", base("Random"), None, 0, [str(tmp_path)])


def test_starts_of_which_some_lack_a_value_are_refused(tmp_path: Path):
    start_file(tmp_path, 1)
    (tmp_path / "iteration_2.yaml").write_text("config_dicts: {network_weight: {lr: -2}}")
    with pytest.raises(ValueError, match="start 1 lacks some of lr, weight_decay, momentum, which the first one has"):
        generate("from_directory", base("Random"), None, 0, [str(tmp_path)])


def test_from_directory_passes_over_the_config_of_a_search(tmp_path: Path):
    population(tmp_path / "search", 0, 5)
    (tmp_path / "search" / "search.jsonl").touch()
    population(tmp_path / "search" / "runs" / "round_000", 3, 1)
    (job,) = generate("from_directory", base("Random"), None, 0, [str(tmp_path)])
    assert job.seeds == (3,)


# Mistakes


@pytest.mark.parametrize(
    "name, algorithm, arguments, said",
    [
        ("sensitivty", "Random", [], "there is no 'sensitivty'; did you mean sensitivity? allowed: natural_sgd, "),
        ("?", "Random", [], "there is no '?', allowed: natural_sgd, "),
        ("natural_sgd", "Random", ["5"], "takes at most 0"),
        ("sensitivity", "Ours_LR", ["0"], "given 0"),
        ("sensitivity", "Ours_LR", ["two"], "given two"),
        ("sensitivity", "Baydin", [], "Baydin has one_step"),
        ("hypergradient_accuracy", "Random", [], "Random has none"),
        ("grid", "Random", [], "needs NAME=LOW:HIGH:COUNT"),
        ("grid", "Random", ["lr=1:2"], "given 'lr=1:2'"),
        ("grid", "Random", ["lr=0:2:3"], "above 0"),
        ("grid", "Random", ["lr=2:1:3"], "lower limit first"),
        ("grid", "Random", ["lr=1:2:0"], "given 'lr=1:2:0'"),
        ("grid", "Random", ["lr=1:2:2", "lr=3:4:2"], "each once"),
        ("grid", "Random", ["weight_decy=1:2:2"], "did you mean weight_decay?"),
        ("validation_fraction", "Random", [], "needs one or more fractions"),
        ("from_directory", "Random", [], "needs the directory"),
        ("from_directory", "Random", ["{tmp_path}/missing"], "holds no runs"),
        ("from_directory", "Random", ["{tmp_path}"], "holds no runs"),
    ],
)
def test_mistakes_are_one_line(tmp_path: Path, name: str, algorithm: str, arguments: list[str], said: str):
    arguments = [argument.format(tmp_path=tmp_path) for argument in arguments]
    with pytest.raises(ValueError, match=re.escape(said)) as caught:
        generate(name, base(algorithm), 1, 0, arguments)
    assert "\n" not in str(caught.value)


def test_too_many_repetitions_of_what_was_found(tmp_path: Path):
    population(tmp_path / "a", 0, 2)
    with pytest.raises(ValueError, match="holds 2 starts, but --repetitions asks for 3"):
        generate("from_directory", base("Random"), 3, 0, [str(tmp_path)])


def test_starts_that_contradict_each_other(tmp_path: Path):
    population(tmp_path / "a", 0, 1, lr=[0.1])
    population(tmp_path / "b", 0, 1, lr=[0.2])
    with pytest.raises(ValueError, match="seed 0 with several starting values"):
        generate("from_directory", base("Random"), None, 0, [str(tmp_path)])


def test_a_config_of_another_program(tmp_path: Path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"config\.json cannot be read"):
        generate("from_directory", base("Random"), None, 0, [str(tmp_path)])


@pytest.mark.parametrize("name", GENERATORS)
def test_every_generator_is_explained(name: str):
    assert GENERATORS[name].__doc__
