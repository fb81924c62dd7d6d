"""Every experiment of the published study (arXiv 2110.10461), and the offline digits, as data.

An experiment is a row, made of parts; a part is one method on some data sets. `scripts/run_all.py` runs them, and
`docs/experiments.md` shows them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

STUDY = (  # the nine algorithms of the study's tables
    "Random",
    "Random_SteppedLR",
    "Random_Validation",
    "Lorraine",
    "Baydin",
    "Ours_LR",
    "Ours_LR_Momentum",
    "Ours_HDLR_Momentum",
    "DiffThroughOpt",
)
TUNED = ("Ours_LR_Momentum", "DiffThroughOpt")
INSIDE = ("Random_TrainingSetOnly", "Ours_LR_Momentum")  # what Ray Tune's schedulers are wrapped around
UCI = ("uci_energy", "uci_kin8nm", "uci_power")  # those of the study's main text
FASHION = ("fashion_mnist",)
MORE_UCI = ("uci_boston", "uci_concrete", "uci_naval", "uci_wine", "uci_yacht")

Method = Literal["parallel_exec", "random_search", "bayesopt", "asha", "pbt"]


@dataclass(frozen=True)
class Part:
    """`data` and `algorithms` name files in configs/. `starts` counts the starts of each variation, and under a search
    its repetitions, trials or members. `overrides` is a generator with its arguments, `settings` are overrides,
    `options` belong to the method's command."""

    data: tuple[str, ...]
    algorithms: tuple[str, ...]
    starts: int
    overrides: tuple[str, ...] = ("natural_sgd",)
    settings: tuple[str, ...] = ()
    method: Method = "parallel_exec"
    options: Mapping[str, int] = field(default_factory=dict)
    group: str = ""  # a folder of its own, where two parts would have the same names


@dataclass(frozen=True)
class Experiment:
    """`figure` says what is drawn of it; `shows` what it is for."""

    name: str
    shows: str
    figure: str
    parts: tuple[Part, ...]


LOSSES = "final losses (table, distribution), losses and learning rates over time"
BEST = "best test metric so far against seconds"
OURS = 16  # trainings by Ours_LR_Momentum, which take 1.9 gradients a step, for the cost of 30 plain ones
ONE_EACH, FEW = {"chunk": 1}, {"chunk": 4}  # where many together would not fit into memory
WIDE = (  # beyond what trains well, to see the borders
    "space.lr.sample=[1e-6,10]",
    "space.lr.bounds=none",
    "space.weight_decay.sample=[1e-7,100]",
    "space.momentum.sample=none",
)

EXPERIMENTS = (
    Experiment(
        "digits",
        "all algorithms offline in minutes; not of the study",
        LOSSES,
        (Part(("digits",), STUDY, 50),),
    ),
    Experiment(
        "uci_energy",
        "the nine algorithms from 200 random starts",
        LOSSES,
        (Part(("uci_energy",), STUDY, 200),),
    ),
    Experiment(
        "uci_others",
        "the same on the other seven UCI sets",
        LOSSES,
        (Part((*UCI[1:], *MORE_UCI), STUDY, 200),),
    ),
    Experiment(
        "fashion_mnist",
        "the nine algorithms from 100 random starts; error rates",
        LOSSES,
        (Part(FASHION, STUDY, 100),),
    ),
    Experiment(
        "fashion_mnist_bn",
        "the same with batch normalization, from the same starts",
        LOSSES,
        (Part(("fashion_mnist_bn",), STUDY, 100),),
    ),
    Experiment(
        "penn_treebank",
        "the nine algorithms on a language model; perplexity",
        LOSSES,
        (Part(("penn_treebank",), STUDY, 50, options=ONE_EACH),),
    ),
    Experiment(
        "cifar10",
        "the nine algorithms on a ResNet-18; error rates",
        LOSSES,
        (Part(("cifar10",), STUDY, 50, options=ONE_EACH),),
    ),
    Experiment(
        "proof_of_concept",
        "learning rate and weight decay move to where random search finds low losses",
        "trajectories over the landscape of a random search",
        (
            Part(("uci_energy",), ("Random",), 500, settings=WIDE),
            Part(("uci_energy",), ("Ours_LR",), 50, settings=("space.momentum.sample=none",)),
        ),
    ),
    Experiment(
        "sensitivity",
        "steps per update T and terms K, each from 1 to 10, for 400 hyper-updates",
        "heat map of median final losses over (T, K)",
        (Part(("uci_energy",), (*TUNED, "Random"), 100, ("sensitivity", "10")),),
    ),
    Experiment(
        "hypergradient_accuracy",
        "hypergradients against exact ones, K = T of DiffThroughOpt, at the same points",
        "relative error and cosine over (T, K)",
        (Part(("uci_energy",), TUNED, 50, ("hypergradient_accuracy", "10")),),
    ),
    Experiment(
        "runtime",
        "each run on its own, one after the other, not compiled",
        "multiples of vanilla training",
        (
            Part(
                (*UCI[:1], *FASHION),
                ("Random_TrainingSetOnly", *STUDY),
                3,
                settings=("inner.compile=off",),
                options={"workers": 1, **ONE_EACH},
            ),
        ),
    ),
    Experiment(
        "bayesopt",
        "5 random and 25 guided evaluations, 32 repetitions; beside it, random starts that cost as much",
        BEST,
        (
            Part((*UCI, *FASHION), INSIDE[:1], 32, method="bayesopt", options={"evaluations": 30, "random": 5}),
            Part((*UCI, *FASHION), INSIDE[:1], 32, method="random_search", options={"trials": 30}, group="random"),
            Part((*UCI, *FASHION), INSIDE[1:], 32, method="random_search", options={"trials": OURS}, group="random"),
        ),
    ),
    Experiment(
        "asha",
        "up to 4000 steps, with plain training and with Ours_LR_Momentum inside",
        BEST,
        (Part(UCI[:1], INSIDE, 1000, method="asha"),),
    ),
    Experiment(
        "pbt",
        "200 members, compared every 100 steps, with plain training and with Ours_LR_Momentum inside",
        BEST,
        (Part(UCI[:1], INSIDE, 200, method="pbt", options={"interval": 100}),),
    ),
    Experiment(
        "long_diff_through_opt",
        "whole trainings, or long stretches, differentiated through; with others trained as long as one of them",
        "table of final losses",
        (
            Part(UCI, ("LongDiffThroughOpt_Standalone",), 60, group="standalone"),
            Part(UCI, ("Random", *TUNED), 60, settings=("inner.steps=200",), group="standalone"),
            Part(FASHION, ("LongDiffThroughOpt_Standalone_FashionMNIST",), 60, options=FEW, group="standalone"),
            Part(FASHION, ("Random", *TUNED), 60, settings=("inner.steps=1000",), group="standalone"),
            Part(FASHION, ("LongDiffThroughOpt_Medium",), 100, options={"chunk": 16}, group="medium"),
            Part(("uci_energy",), ("LongDiffThroughOpt_Full",), 36, group="full"),
        ),
    ),
    Experiment(
        "validation_fraction",
        "how much of the data the validation set needs",
        "table of final losses for each share",
        (
            Part(
                ("uci_energy",),
                ("Ours_LR_Momentum", "Ours_HDLR_Momentum"),
                200,
                ("validation_fraction", "0.1127", "0.25", "0.375", "0.5"),
            ),
        ),
    ),
)
