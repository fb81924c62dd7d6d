"""What a config says: frozen dataclasses in natural units, one per section of a YAML file.

The axes (task) x (rule) x (space) x (engine, meta-optimizer) x (population) are independent of each other.
Choices are `typing.Literal`s, so the types themselves are the list of allowed values. `None` stands for
"decided from the rest of the config or from the data", as each comment says. Only the standard library is
imported here.
"""

from dataclasses import dataclass, field
from typing import Literal, get_args

TaskName = Literal[
    "digits",
    "diabetes",
    "fashion_mnist",
    "cifar10",
    "penn_treebank",
    "uci_boston",
    "uci_concrete",
    "uci_energy",
    "uci_kin8nm",
    "uci_naval",
    "uci_power",
    "uci_wine",
    "uci_yacht",
    "csv",
    "toy_quadratic",
    "toy_ridge",
]
ModelName = Literal["mlp", "cnn", "resnet18", "lstm", "transformer"]
RuleName = Literal["sgd", "adam", "adamw", "mulo"]
EngineName = Literal["none", "neumann", "unroll", "one_step", "forward"]
MetaRuleName = Literal["adam", "sgd", "geometric", "none"]
TransformName = Literal["log10", "logit", "identity"]
ParametrizationName = Literal["standard", "mup", "umup"]
Granularity = Literal["global", "tensor", "element"]
SplitName = Literal["train", "validation", "test"]
Limits = tuple[float, float] | Literal["none"]

GRANULARITIES: tuple[Granularity, ...] = get_args(Granularity)
TOYS = (
    "toy_quadratic",
    "toy_ridge",
)  # tasks that bring their own parameters: `task.model` means nothing to them
MODELS: dict[ModelName, tuple[str, ...]] = {  # the options that each model takes; `init_from` goes with all of them
    "mlp": ("sizes", "activation", "batch_norm", "dropout"),
    "cnn": ("channels",),
    "resnet18": (),
    "lstm": ("embedding", "hidden", "layers"),
    "transformer": ("activation", "dropout", "embedding", "hidden", "layers", "heads"),
}


@dataclass(frozen=True)
class ModelConfig:
    """A model and its options (`MODELS` says whose); None: the model's own default."""

    name: ModelName = "mlp"
    sizes: tuple[int, ...] | None = None  # inputs, hidden widths..., outputs
    activation: Literal["relu", "tanh", "gelu"] = "relu"
    batch_norm: bool = False
    dropout: float = 0.0
    init_from: str | None = None  # .npz file of starting weights, names as in state_dict
    embedding: int | None = None
    hidden: int | None = None
    layers: int | None = None
    heads: int | None = None
    channels: tuple[int, ...] | None = None


@dataclass(frozen=True)
class StandardizeConfig:
    inputs: bool = True
    targets: bool = False


@dataclass(frozen=True)
class TaskConfig:
    name: TaskName
    model: ModelConfig = field(default_factory=ModelConfig)
    batch_size: int | Literal["all"] = 50  # rows; streams for language
    validation_fraction: float | None = None  # of train + validation; None: the standard split
    train_on: Literal["train", "train+validation"] = "train"
    path: str | None = None  # this and the next three: csv only
    splits: tuple[int, int, int] | None = None  # rows of train, validation, test
    standardize: StandardizeConfig = field(default_factory=StandardizeConfig)
    loss: Literal["mse", "cross_entropy"] | None = None  # None: mse

    @property
    def has_validation(self) -> bool:
        """Whether any rows are kept for validation."""
        if self.validation_fraction is not None:
            return self.validation_fraction > 0.0
        return self.splits is None or self.splits[1] > 0


@dataclass(frozen=True)
class InnerConfig:
    """Training of the weights: `total_updates` times `steps_per_update` weight updates and a hyper-update."""

    rule: RuleName = "sgd"
    steps_per_update: int = 10  # T
    steps: int | None = None  # weight updates of the whole run: updates = steps / steps_per_update
    updates: int | None = None  # hyper-updates of the whole run; where given, it wins over `steps`
    clip_norm: float | None = None  # global norm of the gradient
    reset: bool = False  # back to the initial weights after every hyper-update but the last
    nesterov: bool = False
    dampening: float = 0.0
    compile: Literal["auto", "on", "off"] = "auto"

    @property
    def total_updates(self) -> int:
        """Hyper-updates of the whole run, whichever way the config states them."""
        if self.updates is not None:
            return self.updates
        if self.steps is None:
            raise ValueError("inner: the length of the run is missing: set inner.steps or inner.updates")
        return self.steps // self.steps_per_update

    @property
    def total_steps(self) -> int:
        """Weight updates of the whole run."""
        return self.total_updates * self.steps_per_update


@dataclass(frozen=True)
class HyperConfig:
    """One hyperparameter. `sample` is uniform in log10 for transform log10, else in the natural value.

    `init` of theta says where the learned optimizer's weights are from: default (those that the package ships, else
    untrained ones), a file, or a repository on the Hugging Face hub.
    """

    init: float | str
    transform: TransformName
    bounds: Limits = "none"  # natural units; values are clipped to them after every hyper-update
    sample: Limits = "none"  # natural units; none: random runs start at `init`, too
    tune: tuple[Granularity, ...] = ()  # the natural values of several granularities multiply under log10


HYPERPARAMETERS: dict[str, HyperConfig] = {  # defaults; lr, weight_decay, momentum as in arXiv 2110.10461
    "lr": HyperConfig(1e-3, "log10", bounds=(1e-10, 1.0), sample=(1e-6, 1e-1)),
    "weight_decay": HyperConfig(1e-6, "log10", sample=(1e-7, 1e-2)),
    "momentum": HyperConfig(0.5, "logit", sample=(0.0, 1.0)),
    "beta1": HyperConfig(0.9, "logit", sample=(0.8, 0.95)),
    "beta2": HyperConfig(0.999, "logit", sample=(0.99, 0.9999)),
    "eps": HyperConfig(1e-8, "log10", sample=(1e-10, 1e-6)),
    "theta": HyperConfig("default", "identity"),
}
RULES: dict[RuleName, tuple[str, ...]] = {
    "sgd": ("lr", "weight_decay", "momentum"),
    "adam": ("lr", "weight_decay", "beta1", "beta2", "eps"),
    "adamw": ("lr", "weight_decay", "beta1", "beta2", "eps"),
    "mulo": ("lr", "weight_decay", "theta"),
}


@dataclass(frozen=True)
class CurvatureConfig:
    name: Literal["auto", "exact", "finite_difference"] = "auto"
    epsilon: float = 1e-3  # finite_difference: step length, divided by the norm of the vector
    sides: Literal[1, 2] = 1
    sub_batch: float = 1.0  # fraction of the batch that a Hessian-vector product sees


@dataclass(frozen=True)
class HypergradientConfig:
    engine: EngineName = "none"
    terms: int = 5  # K, neumann
    window: int | None = None  # unroll, forward: steps differentiated through; None: steps_per_update
    carry_state: bool = False  # neumann: through the optimizer's state, too
    objective: Literal["validation", "training"] = "validation"  # training: on the next training batch
    curvature: CurvatureConfig = field(default_factory=CurvatureConfig)


@dataclass(frozen=True)
class FactorConfig:
    sample: tuple[float, float]  # each run draws its factor uniformly from here


@dataclass(frozen=True)
class MetaConfig:
    """The rule that moves the raw hyperparameters; without an engine, only geometric does anything."""

    rule: MetaRuleName = "adam"
    lr: float = 0.05
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    factor: float | FactorConfig | None = None  # geometric: the learning rate is multiplied by it at every update


META_STARTS = ("factor",)  # what `population.start` may hold of the meta-optimizer: only geometric has it


@dataclass(frozen=True)
class PopulationConfig:
    runs: int = 1  # R
    sample: bool | None = None  # draw starting hyperparameters from the `sample` ranges; None: when runs > 1
    lift: Literal["auto", "vmap", "loop"] = "auto"
    chunk: int = 32  # runs lifted together
    start: dict[str, tuple[float, ...]] = field(default_factory=dict)  # starting values of each run, natural units

    @property
    def samples(self) -> bool:
        """Whether starting hyperparameters are drawn at random."""
        return self.runs > 1 if self.sample is None else self.sample


@dataclass(frozen=True)
class ReportConfig:
    every: int | None = None  # hyper-updates between reports; None: about 100 reports
    checkpoint_every: int | None = None  # hyper-updates between checkpoints; None: about 20 a run
    keep: int = 10  # checkpoints kept
    trace_every: int | None = None  # hyper-updates between rows of the trace, 0: none; None: 1 while it is small
    splits: tuple[SplitName, ...] = ("validation", "test")


@dataclass(frozen=True)
class LogConfig:
    dir: str | None = None
    group: str | None = None
    name: str | None = None
    progress: Literal["auto", "bar", "none"] = "auto"


@dataclass(frozen=True)
class Config:
    """A whole run. `space` holds every hyperparameter of `inner.rule` and no other, in `RULES`' order."""

    task: TaskConfig
    parametrization: ParametrizationName = "standard"  # of the model, and of the rule's learning rates
    base_width: int | None = None  # mup: the width at which learning rates are what `space` says
    algorithm: str = "Custom"
    trained_by: str | None = None  # the command that such runs are of, where it is not `train`, which then refuses them
    inner: InnerConfig = field(default_factory=InnerConfig)
    space: dict[str, HyperConfig] = field(default_factory=dict)
    hypergradient: HypergradientConfig = field(default_factory=HypergradientConfig)
    meta: MetaConfig = field(default_factory=MetaConfig)
    population: PopulationConfig = field(default_factory=PopulationConfig)
    report: ReportConfig = field(default_factory=ReportConfig)
    log: LogConfig = field(default_factory=LogConfig)
    seed: int = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    dtype: Literal["float32", "float64", "bfloat16"] = "float32"
    threads: int | None = None  # None: torch's own choice
    data_root: str | None = None  # None: environment variable HYPEROPT_ID_DATA, else ./data

    @property
    def draws_validation(self) -> bool:
        """Whether the run needs batches of the validation split."""
        return self.hypergradient.engine != "none" and self.hypergradient.objective == "validation"

    @property
    def window(self) -> int:
        """Steps that unroll and forward differentiate through."""
        return self.hypergradient.window or self.inner.steps_per_update
