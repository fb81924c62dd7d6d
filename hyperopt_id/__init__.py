"""Learn learning rates, weight decay, momentum and betas while training, in one pass, by hypergradients.

parts = assemble(task, rule=rules.sgd(), space=Space({...}), engine=hypergrad.neumann(5))
summary = run(parts, Plan(updates=1000))
"""

from hyperopt_id import curvature, hypergrad, optim, rules
from hyperopt_id.build.assemble import assemble
from hyperopt_id.build.execution import Execution
from hyperopt_id.experiment import Plan, run
from hyperopt_id.space import IDENTITY, LOG10, LOGIT, Hyper, Space
from hyperopt_id.tasks.data import Dataset
from hyperopt_id.tasks.task import Task, supervised

__all__ = [
    "IDENTITY",
    "LOG10",
    "LOGIT",
    "Dataset",
    "Execution",
    "Hyper",
    "Plan",
    "Space",
    "Task",
    "assemble",
    "curvature",
    "hypergrad",
    "optim",
    "rules",
    "run",
    "supervised",
]
