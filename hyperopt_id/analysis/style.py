"""How algorithms and data sets are called and drawn: one table, the same in every table and figure.

Colors are from the palettes of Okabe and Ito and of Tol, which can be told apart by the color-blind. Algorithms of one
family share a color; line style and marker tell them apart, and all of them in gray print.
"""

import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

GRAY, BLACK, ORANGE, VERMILLION, PINK, GREEN, BLUE, SKY = (
    "#8a8a8a",
    "#1a1a1a",
    "#E69F00",
    "#D55E00",
    "#CC79A7",
    "#009E73",
    "#0072B2",
    "#56B4E9",
)
WINE, INDIGO, OLIVE, TEAL = "#882255", "#332288", "#999933", "#44AA99"
INK, FAINT, PALE = "#222222", "#c4c4c4", "#e6e6e6"
SOLID, DASHED, DOTTED = "-", (0, (4, 1.6)), (0, (1.2, 1.2))
MIXED = (0, (5, 1.4, 1.2, 1.4))


class Look(NamedTuple):
    label: str
    color: str
    line: Any = SOLID
    marker: str = "o"


ALGORITHMS: dict[str, Look] = {  # in the order of tables and legends
    "Random": Look("Random", GRAY, SOLID, "o"),
    "Random_TrainingSetOnly": Look("Random (training set only)", GRAY, MIXED, "h"),
    "Random_Validation": Look("Random (validation)", GRAY, DOTTED, "H"),
    "Random_SteppedLR": Look("Random (× LR)", GRAY, DASHED, "s"),
    "Random_3Batched": Look("Random (3-batched)", BLACK, DOTTED, "v"),
    "Lorraine": Look("Lorraine", GREEN, DASHED, "^"),
    "Baydin": Look("Baydin", ORANGE, SOLID, "D"),
    "Ours_LR": Look("Ours WD+LR", PINK, DASHED, "<"),
    "Ours_LR_Momentum": Look("Ours WD+LR+M", VERMILLION, SOLID, ">"),
    "Ours_HDLR_Momentum": Look("Ours WD+HDLR+M", WINE, MIXED, "P"),
    "Ours_Carry": Look("Ours (carried)", INDIGO, SOLID, "X"),
    "DiffThroughOpt": Look("Diff-through-Opt", BLUE, DASHED, "p"),
    "LongDiffThroughOpt_Standalone": Look("Long Diff-through-Opt", SKY, DASHED, "d"),
    "LongDiffThroughOpt_Medium": Look("Medium Diff-through-Opt", SKY, SOLID, "8"),
    "LongDiffThroughOpt_Full": Look("Full Diff-through-Opt", BLUE, DOTTED, "*"),
    "BayesOpt": Look("BayesOpt", BLACK, SOLID, "s"),
    "ASHA": Look("ASHA", GREEN, SOLID, "^"),
    "ASHA_Ours_LR_Momentum": Look("ASHA + Ours WD+LR+M", GREEN, MIXED, "v"),
    "PBT": Look("PBT", TEAL, SOLID, "<"),
    "PBT_Ours_LR_Momentum": Look("PBT + Ours WD+LR+M", TEAL, MIXED, ">"),
    "Prodigy": Look("Prodigy", OLIVE, SOLID, "h"),
    "ScheduleFree_SGD": Look("Schedule-Free SGD", OLIVE, DASHED, "H"),
    "ScheduleFree_AdamW": Look("Schedule-Free AdamW", OLIVE, DOTTED, "h"),
    "MuLO": Look("Learned optimizer", INDIGO, DASHED, "h"),
}
LONG_HORIZON = tuple(name for name in ALGORITHMS if name.startswith("LongDiffThroughOpt"))
OTHERS = ((BLACK, MIXED, "x"), (SKY, MIXED, "+"), (PINK, DOTTED, "1"), (ORANGE, DASHED, "2"), (OLIVE, DOTTED, "3"))
DATASETS = {
    "uci_energy": "UCI Energy",
    "uci_kin8nm": "UCI Kin8nm",
    "uci_power": "UCI Power",
    "uci_boston": "UCI Boston",
    "uci_concrete": "UCI Concrete",
    "uci_naval": "UCI Naval",
    "uci_wine": "UCI Wine",
    "uci_yacht": "UCI Yacht",
    "fashion_mnist": "Fashion-MNIST",
    "penn_treebank": "Penn Treebank",
    "cifar10": "CIFAR-10",
    "digits": "Digits",
}
METRICS = {
    "loss": "loss",
    "perplexity": "perplexity",
    "unnormalized_loss": "MSE (un-normalized)",
    "error": "error rate",
    "accuracy": "accuracy",
}


def _plain(name: str) -> str:
    return re.sub("[^a-z0-9]", "", name.lower())


_KNOWN = {_plain(name): name for name in ALGORITHMS}


def canonical(name: str, inside: str = "") -> str:
    """The table's name of an algorithm, also where it is spelled a little differently; `inside`: what trained the
    models of a search. A name that is not in the table stays as it is."""
    with_inside = _KNOWN.get(_plain(f"{name}_{inside}"))
    return with_inside or _KNOWN.get(_plain(name), name)


def look(name: str) -> Look:
    """How an algorithm is drawn; one that is not in the table has a look that follows from its name."""
    known = ALGORITHMS.get(canonical(name))
    return known or Look(name, *OTHERS[sum(map(ord, name)) % len(OTHERS)])


def in_order(names: Iterable[str]) -> list[str]:
    """Names in the order of the table, others after them."""
    places = list(ALGORITHMS)
    return sorted(names, key=lambda n: (places.index(canonical(n)) if canonical(n) in places else len(places), n))


def dataset(name: str) -> str:
    """Networks with batch normalization are called after the data set without."""
    without = name.removesuffix("_bn")
    return DATASETS.get(name, name) if without == name else f"{DATASETS.get(without, without)}, batch norm"


def datasets_in_order(names: Iterable[str]) -> list[str]:
    places = {name: place for place, name in enumerate(DATASETS)}
    return sorted(names, key=lambda name: (places.get(name.removesuffix("_bn"), len(places)), name))


def metric(name: str, classes: bool = False) -> str:
    """`unnormalized_loss/test` -> `test MSE (un-normalized)`; a loss of `classes` is a cross-entropy."""
    group, _, split = name.partition("/")
    label = "cross-entropy" if group == "loss" and classes else METRICS.get(group, group.replace("_", " "))
    return f"{split} {label}".strip()


def distinct(names: Sequence[str]) -> dict[str, Look]:
    """The looks of several algorithms, in order."""
    return {name: look(name) for name in in_order(names)}
