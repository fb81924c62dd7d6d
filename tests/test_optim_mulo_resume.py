"""`MuLO` interrupted and resumed, copied, moved: what comes after is what would have come."""

import copy
import io
import pickle

import pytest
import torch
import torch.distributed.checkpoint as distributed
from laws import assert_identical
from mulo_cases import random_theta
from mulo_training import IMPLEMENTATIONS, THETA, assert_same, network, train
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_optimizer_state_dict, set_optimizer_state_dict

from hyperopt_id.optim import MuLO


@pytest.fixture(params=IMPLEMENTATIONS)
def impl(request):
    return request.param


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_interrupted_and_resumed_is_uninterrupted(dtype, layout, impl):
    def begin(seed):
        model = network(seed).to(dtype).to(memory_format=layout)
        groups = [{"params": [model.temperature], "lr": 0.5}, {"params": [p for p in model.parameters() if p.ndim]}]
        return model, MuLO(groups, random_theta(seed), impl, weight_decay=0.01)

    model, optimizer = begin(0)
    train(model, optimizer, 3)
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
    train(model, optimizer, 3, 3)

    again, resumed = begin(1)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    again.load_state_dict(saved["model"])
    resumed.load_state_dict(saved["optimizer"])
    train(again, resumed, 3, 3)
    assert_same(again, model)
    assert_identical(resumed.state_dict()["state"], optimizer.state_dict()["state"])


def test_a_state_may_be_loaded_into_another_layout(impl):
    model = network()
    optimizer = MuLO(model.parameters(), THETA, impl)
    train(model, optimizer, 2)
    other = copy.deepcopy(model).to(memory_format=torch.channels_last)
    resumed = MuLO(other.parameters(), THETA, impl)
    resumed.load_state_dict(optimizer.state_dict())
    before = copy.deepcopy(optimizer.state_dict()["state"])
    train(other, resumed, 2, 2)
    assert_identical(optimizer.state_dict()["state"], before)  # it is copied
    train(model, optimizer, 2, 2)
    assert_same(other, model, 1e-6)


@pytest.mark.parametrize("how", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["deepcopy", "pickle"])
def test_copies_go_on_alike(how, impl):
    model = network()
    optimizer = MuLO(model.parameters(), THETA, impl, max_grad_norm=0.1)
    train(model, optimizer, 2)
    other, copied = how((model, optimizer))
    for m, o in ((model, optimizer), (other, copied)):
        train(m, o, 2, 2)
    assert (copied.impl, copied.max_grad_norm) == (impl, 0.1)
    assert_same(other, model)


def with_rests(theta, impl):
    """A network in groups of different θ and rates, the vectors of which rest in every other step."""
    model = network()
    del model._parameters["unused"]
    groups = [{"params": [p for p in model.parameters() if p.ndim != 1]}]
    optimizer = MuLO(groups, theta, impl)
    optimizer.add_param_group(
        {"params": [p for p in model.parameters() if p.ndim == 1], "lr": 0.5, "theta": 0.9 * theta}
    )
    return model, optimizer


def train_with_rests(model, optimizer, first, steps):
    for step in range(first, first + steps):
        for param in optimizer.param_groups[1]["params"]:
            param.requires_grad_(step % 2 == 0)
        train(model, optimizer, 1, step)


@pytest.mark.parametrize("steps", [2, 3])
def test_counts_of_steps_are_each_parameter_s_own(steps, impl):
    """Those that have been equal go on by themselves, before as after a state is loaded."""
    model, optimizer = with_rests(THETA, impl)
    train_with_rests(model, optimizer, 0, steps)
    again, resumed = with_rests(2 * THETA, impl)
    again.load_state_dict(model.state_dict())
    resumed.load_state_dict(optimizer.state_dict())
    for m, o in ((model, optimizer), (again, resumed)):
        train_with_rests(m, o, steps, 3)
        counts = [{o.state[p]["step"].item() for p in group["params"]} for group in o.param_groups]
        assert counts == [{steps + 3.0}, {(steps + 4) // 2}]
    assert_same(again, model)


@pytest.mark.filterwarnings("ignore:torch.distributed is")
@pytest.mark.parametrize("flat", [False, True])
def test_distributed_checkpoints(flat, impl, tmp_path):
    """They are read into the tensors of a state, each into its own."""
    options = StateDictOptions(flatten_optimizer_state_dict=flat)
    model, optimizer = with_rests(THETA, impl)
    train_with_rests(model, optimizer, 0, 3)
    distributed.save(get_optimizer_state_dict(model, optimizer, options=options), checkpoint_id=tmp_path)
    again, resumed = with_rests(2 * THETA, impl)
    saved = get_optimizer_state_dict(again, resumed, options=options)
    distributed.load(saved, checkpoint_id=tmp_path)
    set_optimizer_state_dict(again, resumed, saved, options=options)
    again.load_state_dict(model.state_dict())
    for m, o in ((model, optimizer), (again, resumed)):
        train_with_rests(m, o, 3, 3)
    assert_same(again, model)


def test_hooks_of_loading_a_state(impl):
    """The first may change what is loaded, the last what has been."""
    model = network()
    optimizer = MuLO(model.parameters(), THETA, impl)
    train(model, optimizer, 1)
    saved, first = optimizer.state_dict(), model.temperature

    def doubled(_, given):
        state = {key: {name: 2.0 * value for name, value in own.items()} for key, own in given["state"].items()}
        return {**given, "state": state}

    optimizer.register_load_state_dict_pre_hook(doubled)
    optimizer.register_load_state_dict_post_hook(lambda o: o.state[first].update(step=torch.tensor(9.0)))
    optimizer.load_state_dict(saved)
    assert_identical(optimizer.state[first]["momentum"], 2.0 * saved["state"][0]["momentum"])
    assert optimizer.state[first]["step"] == 9.0
    assert optimizer.state[model[0].weight]["step"] == 2.0
    assert len(optimizer._optimizer_load_state_dict_pre_hooks) == 1


@pytest.mark.gpu
def test_a_module_may_be_moved():
    model = network()
    optimizer = MuLO(model.parameters(), THETA)
    for device in ("cpu", "cuda", "cpu"):
        for param in model.to(device).parameters():
            param.grad = torch.full_like(param, 0.1)
        optimizer.step()
        assert {x.device.type for state in optimizer.state.values() for x in state.values()} == {device}
