"""How algorithms and data sets are called and drawn: one table, the same in every table and figure.

Colors are from the palettes of Okabe and Ito and of Tol, and a few between them. No two algorithms have line and marker
in common, and where they have the line in common, their colors are far apart, also for the color-blind: (color, line)
tells all of them apart on a screen, and (line, marker) in gray print. Variants of one method may share a color, but not
a color and a marker, which is all that there is of a point: a hexagon on its side is the same marker.
"""

import re
from collections.abc import Iterable
from typing import Any, NamedTuple

GRAY, SLATE, BLACK, ORANGE, VERMILLION, PINK, GREEN, BLUE, SKY = (
    "#8a8a8a",
    "#555555",
    "#1a1a1a",
    "#E69F00",
    "#D55E00",
    "#CC79A7",
    "#009E73",
    "#0072B2",
    "#56B4E9",
)
WINE, INDIGO, OLIVE, FOREST, BROWN, LILAC = "#882255", "#332288", "#999933", "#117733", "#7A4B1E", "#9A6BDB"
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
    "Random_TrainingSetOnly": Look("Random (training set only)", SLATE, DASHED, "h"),
    "Random_Validation": Look("Random (validation)", GRAY, DOTTED, "H"),
    "Random_SteppedLR": Look("Random (× LR)", GRAY, MIXED, "s"),
    "Random_3Batched": Look("Random (3-batched)", SLATE, DOTTED, "v"),
    "Lorraine": Look("Lorraine", GREEN, DASHED, "^"),
    "Baydin": Look("Baydin", ORANGE, SOLID, "D"),
    "Ours_LR": Look("Ours WD+LR", PINK, DASHED, "<"),
    "Ours_LR_Momentum": Look("Ours WD+LR+M", VERMILLION, SOLID, ">"),
    "Ours_HDLR_Momentum": Look("Ours WD+HDLR+M", WINE, MIXED, "P"),
    "Ours_Carry": Look("Ours (carried)", INDIGO, SOLID, "X"),
    "DiffThroughOpt": Look("Diff-through-Opt", BLUE, DASHED, "p"),
    "LongDiffThroughOpt_Standalone": Look("Long Diff-through-Opt", SKY, DASHED, "d"),
    "LongDiffThroughOpt_Medium": Look("Medium Diff-through-Opt", SKY, DOTTED, "8"),
    "LongDiffThroughOpt_Full": Look("Full Diff-through-Opt", BLUE, MIXED, "*"),
    "BayesOpt": Look("BayesOpt", BLACK, SOLID, "s"),
    "ASHA": Look("ASHA", SKY, SOLID, "v"),
    "ASHA_Ours_LR_Momentum": Look("ASHA + Ours WD+LR+M", SKY, MIXED, "^"),
    "PBT": Look("PBT", BROWN, SOLID, "d"),
    "PBT_Ours_LR_Momentum": Look("PBT + Ours WD+LR+M", BROWN, MIXED, "<"),
    "Prodigy": Look("Prodigy", FOREST, DOTTED, "h"),
    "ScheduleFree_SGD": Look("Schedule-Free SGD", OLIVE, DASHED, "*"),
    "ScheduleFree_AdamW": Look("Schedule-Free AdamW", OLIVE, MIXED, "H"),
    "MuLO": Look("Learned optimizer", LILAC, SOLID, "8"),
    "Ours_MuLO": Look("Ours theta+LR", LILAC, DASHED, ">"),
}
LONG_HORIZON = tuple(name for name in ALGORITHMS if name.startswith("LongDiffThroughOpt"))
OTHERS = (  # of algorithms that are not in the table
    (WINE, SOLID, "^"),
    (INDIGO, DASHED, "v"),
    (ORANGE, DOTTED, "D"),
    (INDIGO, MIXED, ">"),
    (ORANGE, DASHED, "o"),
    (BLUE, SOLID, "<"),
    (INDIGO, DOTTED, "^"),
    (ORANGE, MIXED, "D"),
)
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
    """How an algorithm is drawn on its own; one that is not in the table has a look that follows from its name."""
    known = ALGORITHMS.get(canonical(name))
    return known or Look(name, *OTHERS[_place(name)])


def _place(name: str) -> int:
    return sum(map(ord, name)) % len(OTHERS)


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


def distinct(names: Iterable[str]) -> dict[str, Look]:
    """The looks of all algorithms in one figure, in order. Those that are not in the table have the look of their name,
    or the next that is free; more of them than there are looks share some."""
    ordered, taken = in_order(dict.fromkeys(names)), set()
    looks = {}
    for name in ordered:
        looks[name] = look(name)
        if canonical(name) not in ALGORITHMS:
            places = [(_place(name) + step) % len(OTHERS) for step in range(len(OTHERS))]
            place = next((place for place in places if place not in taken), places[0])
            taken.add(place)
            looks[name] = Look(name, *OTHERS[place])
    return looks
