"""Laws of populations: vmap = loop for every engine, chunks and company change nothing, the policy on non-finite
numbers."""

import itertools
import math
from dataclasses import replace

import pytest
import torch
from laws import LIFTS, assert_close, assert_identical, copied, random

from hyperopt_id import (
    LOG10,
    LOGIT,
    Dataset,
    Execution,
    Hyper,
    Plan,
    Space,
    assemble,
    hypergrad,
    population,
    rules,
    run,
    supervised,
    trees,
)
from hyperopt_id.experiment import hyper_update
from hyperopt_id.tasks.models import mlp
from hyperopt_id.tasks.toys import ridge

DATA = Dataset(
    random(40, 4, seed=1), torch.arange(40) % 3, {"train": (0, 24), "validation": (24, 32), "test": (32, 40)}
)
TASK = supervised(DATA, lambda: mlp((4, 5, 3), "tanh"), "cross_entropy", 6)
SEEDS = [0, 1, 2, 3, 4]
ENGINES = {
    "none": hypergrad.no_gradient(),
    "neumann": hypergrad.neumann(3),
    "neumann, carried": hypergrad.neumann(3, carry_state=True),
    "one_step": hypergrad.one_step(),
    "unroll": hypergrad.unroll(2),
    "forward": hypergrad.forward(2),
}
PLAN = Plan(updates=4, steps_per_update=3)


def space(tune=("global",)):
    return Space(
        {
            "lr": Hyper(0.05, LOG10, (1e-10, 1.0), (1e-3, 0.5), tune),
            "weight_decay": Hyper(1e-3, LOG10, None, (1e-4, 1e-1), tune),
            "momentum": Hyper(0.5, LOGIT, None, (0.0, 0.95), tune),
        }
    )


def parts_of(engine, seeds=SEEDS, lift: population.Lift = "loop", chunk=32, task=TASK, own=None, **options):
    execution = Execution(lift, chunk)
    if engine.window == 0:
        own = space(())
    return assemble(
        task,
        rule=rules.sgd(),
        space=own or space(),
        engine=engine,
        seeds=seeds,
        sample=True,
        execution=execution,
        **options,
    )


def advance(parts, plan=PLAN):
    """The state of all members before the first hyper-update and after each, and the training losses [T, R] of each."""
    chunks = population.split(parts.start(), parts.members, parts.lift)
    history, losses = [population.join(chunks, len(parts.seeds), parts.lift)], []
    for update in range(plan.updates):
        pairs = zip(chunks, parts.members, strict=True)
        advanced = [hyper_update(parts, plan, update, chunk, members) for chunk, members in pairs]
        chunks = [chunk for chunk, _ in advanced]
        history.append(population.join(chunks, len(parts.seeds), parts.lift))
        columns = [record.losses.reshape(plan.steps_per_update, -1).T for _, record in advanced]
        losses.append(torch.cat(columns)[: len(parts.seeds)].T)
    return history, losses


@pytest.mark.parametrize("engine", ENGINES)
def test_vmap_equals_loop(engine):
    final = [advance(parts_of(ENGINES[engine], lift=lift))[0][-1] for lift in LIFTS]
    assert_close(tuple(final[0]), tuple(final[1]), 1e-11)


@pytest.mark.parametrize("engine", ENGINES)
def test_vmap_equals_loop_at_several_granularities(engine):
    own = space(("global", "tensor"))
    final = [advance(parts_of(ENGINES[engine], lift=lift, own=own))[0][-1] for lift in LIFTS]
    assert_close(tuple(final[0]), tuple(final[1]), 1e-11)


def test_sub_batches_thin_the_products_in_every_lift():
    whole = advance(parts_of(ENGINES["neumann"]))[0][-1]
    thinned = [advance(parts_of(ENGINES["neumann"], lift=lift, sub_batch=0.5))[0][-1] for lift in LIFTS]
    assert_close(tuple(thinned[0]), tuple(thinned[1]), 1e-11)
    assert not torch.allclose(
        thinned[0].meta_state["mean"]["lr/global"], whole.meta_state["mean"]["lr/global"], rtol=1e-3
    )


@pytest.mark.parametrize("engine", ENGINES)
def test_a_run_does_not_notice_its_company(engine):
    """Loop lift: the last bit of run 3 does not depend on how many others there are."""
    together = trees.take(advance(parts_of(ENGINES[engine]))[0][-1], 3)
    alone = trees.take(advance(parts_of(ENGINES[engine], seeds=[3]))[0][-1], 0)
    assert_identical(tuple(together), tuple(alone))


@pytest.mark.parametrize("lift", LIFTS)
def test_the_last_bit_does_not_depend_on_the_size_of_chunks(lift):
    """To the last bit under "loop"; under "vmap" matrices of another size may round differently."""
    final = [advance(parts_of(ENGINES["neumann"], lift=lift, chunk=chunk))[0][-1] for chunk in (1, 2, 3, 5, 32)]
    for other in final[1:]:
        if lift == "loop":
            assert_identical(tuple(other), tuple(final[0]))
        else:
            assert_close(tuple(other), tuple(final[0]), 1e-11)


@pytest.mark.parametrize(("runs", "size"), [(1, 1), (1, 32), (5, 1), (5, 2), (5, 5), (7, 3), (100, 32), (64, 32)])
def test_chunks_hold_every_run_once_and_have_one_length(runs, size):
    members = population.chunks(runs, size)
    flat = [member for chunk in members for member in chunk]
    assert flat[:runs] == list(range(runs))
    assert set(flat[runs:]) <= {runs - 1}
    assert len({len(chunk) for chunk in members}) == 1
    assert len(members[0]) <= size
    assert len(members) * len(members[0]) - runs < len(members[0])


def test_chunks_are_shared_out_evenly_among_threads():
    assert [len(population.chunks(runs, 32)) for runs in (32, 33, 100, 200, 1000)] == [1, 2, 4, 8, 32]


@pytest.mark.parametrize("size", [1, 2, 3, 5, 32])
@pytest.mark.parametrize("lift", LIFTS)
def test_join_inverts_split(lift, size):
    whole = parts_of(ENGINES["neumann"]).start()
    members = population.chunks(len(SEEDS), 1 if lift == "loop" else size)
    assert_identical(tuple(population.join(population.split(whole, members, lift), len(SEEDS), lift)), tuple(whole))


def test_plain_nested_dictionaries_hold_the_whole_run():
    whole = parts_of(ENGINES["neumann"]).start()
    plain = population.to_plain(whole)
    assert type(plain["z"]) is dict
    again = population.from_plain(plain)
    assert type(again) is population.Run
    assert_identical(tuple(again), tuple(whole))


@pytest.mark.parametrize("lift", LIFTS)
def test_update_is_pure(lift):
    parts = parts_of(ENGINES["neumann"], lift=lift)
    chunk = population.split(parts.start(), parts.members, lift)[0]
    before = copied(chunk)
    first = hyper_update(parts, PLAN, 0, chunk, parts.members[0])
    second = hyper_update(parts, PLAN, 0, chunk, parts.members[0])
    assert_identical(tuple(chunk), tuple(before))
    assert_identical(tuple(first[0]), tuple(second[0]))


@pytest.mark.parametrize("lift", LIFTS)
def test_the_meta_optimizer_is_adam_on_raw_values_then_clipped(lift):
    parts = parts_of(ENGINES["neumann"], lift=lift, own=space(("global", "tensor")))
    chunks = population.split(parts.start(), parts.members, lift)
    chunk = chunks[0]
    keys = list(chunk.raw)
    theirs = {key: torch.nn.Parameter(chunk.raw[key].clone()) for key in keys}
    twin = torch.optim.Adam(theirs.values(), lr=0.05)
    for update in range(3):
        chunk, record = hyper_update(parts, PLAN, update, chunk, parts.members[0])
        for key in keys:
            theirs[key].grad = record.hypergradient[key]
        twin.step()
        bounds = math.log10(1e-10), 0.0
        with torch.no_grad():
            common = theirs["lr/global"].clamp_(*bounds)
            for key in keys:
                if key.startswith("lr/tensor"):
                    theirs[key].copy_((common + theirs[key]).clamp(*bounds) - common)
        assert_close(chunk.raw, {key: value.detach() for key, value in theirs.items()}, 1e-12)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_caller_may_have_switched_gradients_off(engine):
    expected = run(parts_of(ENGINES[engine], lift="vmap"), PLAN)
    with torch.no_grad():
        found = run(parts_of(ENGINES[engine], lift="vmap"), PLAN)
    assert_identical(found["final"], expected["final"])
    assert_identical(found["hyper"], expected["hyper"])


# Non-finite numbers

RIDGE = ridge(rows=(20, 10, 10), dimension=3)  # float32: 3.4e38 is reached within a few dozen steps
LONG = Plan(updates=12, steps_per_update=4)
WILD = (1, 4)


def wild_parts(seeds, lift: population.Lift = "loop", engine="neumann", lr=10.0):
    """Members 1 and 4 start at lr = 10, the others at values drawn from the space."""
    wide = Space({**space().hypers, "lr": Hyper(0.01, LOG10, (1e-10, 100.0), (1e-3, 0.1), ("global",))})
    parts = parts_of(ENGINES[engine], seeds, lift, chunk=3, task=RIDGE.task, own=wide)

    def start():
        state = parts.start()
        wild = torch.tensor([seed in WILD for seed in seeds])
        rates = torch.where(wild, math.log10(lr), state.raw["lr/global"])
        return state._replace(raw={**state.raw, "lr/global": rates.float()})

    return replace(parts, start=start)


def numbers(values):
    """The summary's tensors, or lists in which None stands for what is not finite, as float64."""
    if isinstance(values, list):
        values = torch.tensor([math.nan if value is None else value for value in values])
    return values.double()


@pytest.mark.parametrize("engine", ["neumann", "neumann, carried", "unroll", "one_step", "forward"])
def test_divergence_is_flagged_and_leaves_the_others_as_they_were(engine):
    seeds = [0, 1, 2, 3, 4, 5]
    summary = run(wild_parts(seeds, engine=engine), LONG)
    assert summary["diverged"].tolist() == [seed in WILD for seed in seeds]
    others = [seed for seed in seeds if seed not in WILD]
    without = run(wild_parts(others, engine=engine), LONG)
    for group in ("final", "hyper", "best_validation"):
        for name, values in summary[group].items():
            values, expected = (numbers(found) for found in (values, without[group][name]))
            assert_identical(values[others], expected)
            assert group == "best_validation" or values[list(WILD)].isnan().all()
    after, company = (advance(wild_parts(members, engine=engine), LONG)[0][-1] for members in (seeds, others))
    assert_identical(tuple(trees.take(after, torch.tensor(others))), tuple(company))


@pytest.mark.parametrize("lift", LIFTS)
def test_the_step_of_the_divergence_is_right_and_the_state_before_it_is_kept(lift):
    """It is the step of the first non-finite loss; where only the new weights are not finite, the one after it."""
    seeds, steps = [0, 1, 2, 3, 4, 5], LONG.steps_per_update
    history, losses = advance(wild_parts(seeds, lift), LONG)
    for member in seeds:
        lost = [int(state.diverged_at[member]) for state in history]
        assert (lost[-1] >= 0) == (member in WILD)
        if member not in WILD:
            continue
        update = lost.index(next(step for step in lost if step >= 0)) - 1
        bad = losses[update][:, member].isfinite().logical_not().nonzero().flatten().tolist()
        assert all(column[:, member].isfinite().all() for column in losses[:update])
        assert lost == [-1] * (update + 1) + [update * steps + (bad[0] if bad else steps)] * (len(lost) - update - 1)
        kept = trees.take((history[update].z, history[update].raw, history[update].meta_state), member)
        assert trees.total(kept).isfinite()
        for later in history[update + 1 :]:
            assert_identical(trees.take((later.z, later.raw, later.meta_state), member), kept)


@pytest.mark.parametrize("engine", ["none", "neumann"])
@pytest.mark.parametrize("lift", LIFTS)
def test_weights_that_overflow_in_the_last_step_are_seen_before_the_next_loss(lift, engine):
    one_step = replace(LONG, steps_per_update=1, updates=2)
    history, losses = advance(wild_parts([0, 1, 2], lift, engine, lr=3e38), one_step)
    assert torch.cat(losses[:1]).isfinite().all()
    assert [state.diverged_at.tolist() for state in history] == [[-1, -1, -1], [-1, 1, -1], [-1, 1, -1]]
    assert_identical(trees.take(tuple(history[2].z), 1), trees.take(tuple(history[0].z), 1))


def test_under_vmap_the_others_differ_by_rounding_only():
    others = [0, 2, 3, 5]
    mixed, alone = run(wild_parts([0, 1, 2, 3, 4, 5], "vmap"), LONG), run(wild_parts(others, "vmap"), LONG)
    assert mixed["diverged"].tolist() == [False, True, False, False, True, False]
    for name, values in mixed["final"].items():
        torch.testing.assert_close(values[others], alone["final"][name], rtol=1e-4, atol=1e-5)


def poisoned(positions, split="validation", slopes=True):
    """The task whose loss is not a number on the batches number `positions` of run 1, nor its gradient if `slopes`."""
    bad = torch.stack([TASK.batches(split, [1], position, 1).seed[0, 0] for position in positions])

    def loss(params, buffers, batch):
        value, rest = TASK.loss(params, buffers, batch)
        if batch.split != split:
            return value, rest
        factor = torch.where((batch.seed == bad).any(), math.nan, 1.0)
        return (value * factor if slopes else value + (factor - 1.0)), rest

    return replace(TASK, loss=loss)


@pytest.mark.parametrize("lift", LIFTS)
@pytest.mark.parametrize("slopes", [True, False], ids=["loss and gradient", "loss only"])
def test_a_diverged_run_does_not_come_back(lift, slopes):
    """Step 4 of run 1 has no finite loss; the steps after it would be fine again."""
    history, _ = advance(parts_of(ENGINES["neumann"], lift=lift, task=poisoned([4], "train", slopes)))
    assert [state.diverged_at.tolist()[1] for state in history] == [-1, -1, 4, 4, 4]
    for state in history[2:]:
        for part in ("z", "raw", "meta_state"):
            assert_identical(trees.take(getattr(state, part), 1), trees.take(getattr(history[1], part), 1))


@pytest.mark.parametrize("lift", LIFTS)
@pytest.mark.parametrize("engine", ["neumann", "unroll", "forward"])
def test_a_hypergradient_that_is_not_finite_is_skipped_and_counted(engine, lift):
    clean = advance(parts_of(ENGINES[engine], lift=lift))[0]
    history = advance(parts_of(ENGINES[engine], lift=lift, task=poisoned([1, 2])))[0]
    before, after, end = history[1], history[3], history[4]
    assert after.skipped.tolist() == [0, 2, 0, 0, 0]
    assert end.skipped.tolist() == [0, 2, 0, 0, 0]
    assert (end.diverged_at == -1).all()
    for part in ("raw", "meta_state"):
        then, now = trees.take(getattr(before, part), 1), trees.take(getattr(after, part), 1)
        assert_identical(now, then)
        assert not torch.equal(trees.leaves(trees.take(getattr(end, part), 1))[0], trees.leaves(now)[0])
    assert not torch.equal(after.z.params["layers.0.weight"][1], before.z.params["layers.0.weight"][1])
    others = torch.tensor([0, 2, 3, 4])
    assert_identical(tuple(trees.take(end, others)), tuple(trees.take(clean[4], others)))


def test_the_objective_may_be_the_next_training_batch():
    """Baydin's objective is the loss before the next step, where the next hyper-update begins."""
    plan = Plan(updates=3, steps_per_update=1, objective="training")
    parts = parts_of(ENGINES["one_step"], seeds=[0])
    chunk = population.split(parts.start(), parts.members, "loop")[0]
    records = []
    for update in range(3):
        chunk, record = hyper_update(parts, plan, update, chunk, parts.members[0])
        records.append(record)
    for now, later in itertools.pairwise(records):
        assert_close(now.objective, later.losses[0], 1e-14)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"rule": rules.adam()}, "^space has to hold .*: missing beta1, beta2, eps, unknown momentum$"),
        (
            {"space": Space({"lr": Hyper(0.1)})},
            "lr, weight_decay, momentum: missing weight_decay, momentum, unknown no",
        ),
        ({"meta": rules.sgd()}, "^meta_space has to hold .*: missing momentum, unknown beta1, beta2, eps$"),
    ],
)
def test_a_space_holds_the_hyperparameters_of_its_rule(given, message):
    with pytest.raises(ValueError, match=message):
        assemble(TASK, **{"rule": rules.sgd(), "space": space(), "engine": ENGINES["neumann"]} | given)
