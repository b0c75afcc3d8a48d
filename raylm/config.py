"""The whole of a run's configuration: one frozen typed tree.

A field's default, bounds and help text stand here once; the command line, `config.json` and the help derive from
them. Values come from, in rising order of weight: these defaults, a recipe (`raylm/recipes.py`), a TOML file
(`--config`), options (`--section.field value`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationInfo,
    field_validator,
    model_validator,
)

Rate = Annotated[float, Field(ge=0.0, lt=1.0)]
"""A share that is dropped."""


class Section(BaseModel):
    """Frozen; unknown keys are refused; a field's docstring is its help text."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False, validate_default=True
    )

    @model_validator(mode="before")
    @classmethod
    def _none_is_a_word(cls, values: Any) -> Any:
        """Options and TOML have no null: "none" stands for it where a field may be empty."""
        if not isinstance(values, Mapping):
            return values
        may_be_none = {name for name, field in cls.model_fields.items() if type(None) in get_args(field.annotation)}
        return {name: None if value == "none" and name in may_be_none else value for name, value in values.items()}


def _is_range(text: str) -> str:
    first, _, last = text.partition(":")
    if not (first.isdecimal() and last.isdecimal() and int(first) < int(last)):
        raise ValueError("expected FIRST:LAST, whole numbers with FIRST below LAST, as in 120:121")
    return text


def _is_slow_down(text: str) -> str:
    place, _, factor = text.partition(":")
    if not (place.isdecimal() and re.fullmatch(r"0?\.\d+", factor) and float(factor) > 0):
        raise ValueError("expected POSITION:FACTOR, a whole number and a factor between 0 and 1, as in 100:0.5")
    return text


def _workers(value: Any) -> int | str:
    """A number of workers, or MIN:MAX in one form."""
    low, colon, high = str(value).partition(":")
    if not all(part.isdecimal() and int(part) > 0 for part in ((low, high) if colon else (low,))):
        raise ValueError("expected a number of workers above 0, or MIN:MAX, as in 1:4")
    if not colon or int(low) == int(high):
        return int(low)
    if int(low) > int(high):
        raise ValueError("expected MIN:MAX with MIN not above MAX, as in 1:4")
    return f"{int(low)}:{int(high)}"


class DataConfig(Section):
    corpus: tuple[str, ...] = Field(("auto",), min_length=1)
    """What to train on: auto (PTB where it can be had, else the sample), ptb, sample, one or more text files, or a
    folder (for datasets of `raylm prepare` also a URI) with train, valid and test."""
    data_dir: Path | None = None
    """Folder that holds ptb.train.txt, ptb.valid.txt and ptb.test.txt."""
    cache_dir: Path | None = None
    """Where downloads and prepared datasets are kept; default $XDG_CACHE_HOME/raylm, else ~/.cache/raylm."""
    tokenizer: Literal["words", "whitespace", "characters", "bytes"] | None = None
    """How text becomes tokens: words (the Penn Treebank's way), whitespace (words as given), characters or bytes, which
    read any file and know no <unk>; none: as a dataset of `raylm prepare` was made, else whitespace."""
    vocabulary_size: PositiveInt = 10_000
    """Most words kept for a text of one's own; rarer ones become <unk>. PTB and the sample bring their own."""
    mode: Literal["stream", "sentences"] = "stream"
    """stream: each lane reads on where its last window ended, its state carried (truncated BPTT). sentences: padded
    and masked, in batches of like length, each from a state of zero."""
    lanes: PositiveInt = 20
    """Parallel streams of the global batch, or its sentences, whatever the number of workers."""
    window: PositiveInt = 20
    """stream: time steps of truncated back-propagation (BPTT length)."""
    jitter: bool = False
    """stream: draw the length of each window, around `window` and now and then around half of it, and multiply the
    learning rate by length / window (AWD-LSTM)."""
    order: Literal["sequential", "chunk"] = "sequential"
    """stream: order of an epoch, as the text stands, or its chunks permuted anew each epoch."""
    buckets: tuple[PositiveInt, ...] = (8, 12, 16, 20, 24, 28, 32, 40, 48, 64, 96, 128)
    """sentences: widths that batches are padded to, in targets; what is longer than the last is read in pieces."""
    pool_chunks: PositiveInt = 16
    """sentences: chunks of the dataset whose rows are sorted by length together."""

    @field_validator("jitter")
    @classmethod
    def _is_of_streams(cls, jitter: bool, others: ValidationInfo) -> bool:
        if jitter and others.data.get("mode") == "sentences":
            raise ValueError("sentences have lengths of their own: leave it out, or choose --data.mode stream")
        return jitter

    @property
    def widths_vary(self) -> bool:
        """Whether windows are of different widths."""
        return self.jitter or self.mode == "sentences"


class ModelConfig(Section):
    layers: PositiveInt = 2
    """LSTM layers."""
    hidden: PositiveInt = 200
    """Units of each layer, and of the embedding where `embedding` is none."""
    embedding: PositiveInt | None = None
    """Units of the embedding and, without a projection, of the last layer and so of the softmax; none: as `hidden`."""
    dropout: Rate = 0.0
    """Share dropped on the non-recurrent connections."""
    input_dropout: Rate | None = None
    """Share dropped of the first layer's input; none: as `dropout`."""
    output_dropout: Rate | None = None
    """Share dropped of the softmax's input; none: as `dropout`."""
    locked_dropout: bool = False
    """The same units are dropped at every time step of a window (Gal and Ghahramani 2016)."""
    embedding_dropout: Rate = 0.0
    """Share of the words of the vocabulary that a window reads as zeros."""
    recurrent_dropout: Rate = 0.0
    """Share of the weights of each layer's recurrent connection dropped in a window (DropConnect)."""
    activation_regularization: NonNegativeFloat = 0.0
    """Times the mean square of the softmax's input, is added to a token's loss in training (AR)."""
    temporal_regularization: NonNegativeFloat = 0.0
    """Times the mean square of the last layer's change between two time steps, is added as well (TAR)."""
    init: Literal["uniform", "awd"] = "uniform"
    """uniform: every parameter starts in ± init_scale. awd: each layer in ± 1/√units, the softmax's bias at zero."""
    init_scale: PositiveFloat = 0.1
    """Parameters start uniform in ± this."""
    forget_bias: float = 0.0
    """Added to the forget gate's first bias."""
    projection: PositiveInt | None = None
    """Outputs of each layer, computed from its units, and of the embedding where `embedding` is none (Sak et al. 2014);
    none: the units themselves."""
    peepholes: bool = False
    """Gates see the cell through weights of their own (Gers and Schmidhuber 2000)."""
    mogrifier_rounds: NonNegativeInt = 0
    """Times that a layer's input and hidden state gate each other before each time step, 5 in the paper (Melis et al.
    2020); the gradient is TensorFlow's own then, and slower. 0: a plain LSTM."""
    kernel: Literal["fused", "loop"] = "fused"
    """A layer's gradient. fused: written out, one product for each weight; loop: TensorFlow's own, one time step after
    the other, slower: a check."""
    jit: bool = False
    """Compile the loops over time with XLA: some seconds at the start, and again for each width of sentences."""
    tie_weights: bool = False
    """The softmax's matrix is the embedding (Press and Wolf 2017)."""
    loss_chunk: PositiveInt | Literal["auto"] | None = "auto"
    """Words whose logits are computed at once, for all rows: fewer take less memory and a fourth matrix product. auto:
    as many as 64 MiB hold; none: all."""
    sampled_softmax: PositiveInt | None = None
    """Words drawn for each window, log-uniformly over ids, that the loss is estimated from in training (evaluation is
    exact); none: the exact loss. For vocabularies of 100,000 words and more."""
    precision: Literal["float32", "tf32", "bfloat16", "float16"] = "float32"
    """What training's matrix products are taken in; weights, sums and the rest stay float32, and so does evaluation.
    float32: in full, TensorFloat-32 off, as on a processor. tf32: as GPUs round it. float16: with a loss scale that
    halves where a gradient overflows (that update is left out) and doubles after 2,000 updates without."""

    @property
    def dropout_rates(self) -> tuple[float, ...]:
        """Of the input of each layer and of the softmax."""
        first = self.dropout if self.input_dropout is None else self.input_dropout
        last = self.dropout if self.output_dropout is None else self.output_dropout
        return (first, *[self.dropout] * (self.layers - 1), last)

    @property
    def draws_masks(self) -> bool:
        """Whether anything is dropped."""
        return any((*self.dropout_rates, self.embedding_dropout, self.recurrent_dropout))

    @property
    def units(self) -> tuple[int, ...]:
        """Of each layer."""
        last = self.hidden if self.projection else self.embedding or self.hidden
        return (*[self.hidden] * (self.layers - 1), last)

    @property
    def widths(self) -> tuple[int, ...]:
        """Of the embedding and of each layer's output: layer n reads widths[n] and gives widths[n + 1]."""
        outputs = (self.projection,) * self.layers if self.projection else self.units
        return (self.embedding or self.projection or self.hidden, *outputs)

    @model_validator(mode="after")
    def _mogrifier_is_a_plain_loop(self) -> ModelConfig:
        if self.mogrifier_rounds and self.jit:
            raise ValueError("jit: there is no compiled form of mogrifier_rounds; leave one of them out")
        return self

    @model_validator(mode="after")
    def _one_table_has_one_width(self) -> ModelConfig:
        if self.tie_weights and self.widths[0] != self.widths[-1]:
            raise ValueError(
                f"tie_weights: the embedding has {self.widths[0]} units and the softmax {self.widths[-1]}; "
                "leave embedding out, or give it as projection"
            )
        return self


class OptimizerConfig(Section):
    name: Literal["sgd", "adam", "adagrad"] = "sgd"
    """The update."""
    clip_norm: PositiveFloat | None = 5.0
    """Largest global norm of the gradient, after the all-reduce; none to leave it as it is."""
    clip_of: Literal["all", "layers"] = "all"
    """What is clipped, and by whose norm: all weights, or those of the LSTM layers alone."""
    loss_scale: Literal["token_mean", "sequence_sum"] = "sequence_sum"
    """What the gradient is of: the mean over tokens, or the sum over time averaged over lanes (T times as large, so
    learning rate and clip mean something else)."""
    beta1: float = Field(0.9, ge=0.0, lt=1.0)
    """Adam's decay of the first moment."""
    beta2: float = Field(0.999, ge=0.0, lt=1.0)
    """Adam's decay of the second moment."""
    epsilon: PositiveFloat = 1e-8
    """Adam's smallest denominator."""
    accumulator: PositiveFloat = 1.0
    """Where Adagrad's sums of squares begin."""
    weight_decay: NonNegativeFloat = 0.0
    """An update first takes this share, times the learning rate, of every weight from it."""
    averaging: Literal["off", "triggered", "always", "exponential"] = "off"
    """Evaluate and use the mean of the weights after each update. always: from the first. triggered: from the end of
    the first epoch whose validation loss is above the lowest of all but the last `patience` before it (NT-ASGD).
    exponential: of the LSTM layers' weights alone, the older the less."""
    averaging_decay: float = Field(0.999, gt=0.0, lt=1.0)
    """exponential: what an update leaves of the mean before it."""
    patience: PositiveInt = 5
    """Epochs that the validation loss may go without falling, before averaging or `stop_early`."""


class ScheduleConfig(Section):
    kind: Literal["constant", "held", "cosine", "inverse_sqrt", "linear", "exponential", "staircase"] = "held"
    """How the learning rate goes on after the warm-up. held: constant for some epochs, then divided every epoch."""
    learning_rate: PositiveFloat = 1.0
    """The highest learning rate."""
    warmup_steps: NonNegativeInt = 0
    """Updates over which the learning rate rises linearly to its highest."""
    held_epochs: PositiveInt = 4
    """held: epochs at the highest learning rate."""
    divisor: float = Field(2.0, ge=1.0)
    """held: each later epoch divides the learning rate by this."""
    decay_steps: PositiveInt = 5_000
    """exponential, staircase: updates in which the learning rate is multiplied by decay_rate."""
    decay_rate: float = Field(0.1, gt=0.0, le=1.0)
    """exponential, staircase: the factor."""
    final_fraction: float = Field(0.0, ge=0.0, le=1.0)
    """cosine, linear: where the decay ends, right after the last update, as a share of the highest learning rate."""


class GuardConfig(Section):
    snapshot_every: PositiveInt = 50
    """Updates between snapshots of the whole state in host memory: the most that a rollback computes again, twice and
    four times as many where faults go on."""
    ring: PositiveInt = 4
    """Snapshots kept in host memory on every worker, each as large as weights, optimizer slots and carry."""
    max_rollbacks: NonNegativeInt = 32
    """Rollbacks in the whole run, through resumes too, before it ends with its verdict."""
    max_rollbacks_per_incident: NonNegativeInt = 8
    """Rollbacks for one incident, before the run ends with its verdict."""
    backoff: float = Field(0.5, gt=0.0, le=1.0)
    """Where faults go on after windows were left out, the learning rate is multiplied by this; 1 leaves it."""
    recovery: PositiveInt = 500
    """Windows over which a slowed learning rate comes back, geometrically."""
    spike_warmup: NonNegativeInt = 100
    """Updates before which no loss counts as a spike."""
    spike_margin: PositiveFloat = 1.0
    """A loss this far above ln V, in nats, is a spike: the model is worse than guessing."""
    spike_deviations: PositiveFloat = 10.0
    """A loss this many robust deviations above the median of the last sound ones is a spike."""
    leap_factor: PositiveFloat = 1000.0
    """Where the gradient is not clipped, a norm this many times the median of the last sound ones is a fault."""
    probe_seconds: PositiveFloat = 60.0
    """Time to find out why a step fails that failed twice; `raylm replay` goes on later without a limit."""
    keep_incidents: PositiveInt = 50
    """Incidents whose folders are kept, those written last; each holds the whole state."""
    step_timeout: PositiveFloat = 600.0
    """Seconds without progress after which a worker ends itself, and all start anew from the newest checkpoint."""
    leave_out: tuple[Annotated[str, AfterValidator(_is_range)], ...] = ()
    """Windows to leave out from the start, FIRST:LAST each, LAST not included: what a rollback did to another run."""
    slow_down: tuple[Annotated[str, AfterValidator(_is_slow_down)], ...] = ()
    """Slow-downs from the start, POSITION:FACTOR each: what a rollback did to another run."""


class CheckpointConfig(Section):
    every: PositiveInt = 500
    """Updates between checkpoints."""
    keep_last: int = Field(3, ge=2)
    """Newest checkpoints kept."""
    keep_every: PositiveInt | None = None
    """Checkpoints whose step is a multiple of this are kept for good; none to keep no such ones."""
    keep_best: NonNegativeInt = 1
    """Checkpoints with the lowest validation loss kept."""


class ReportConfig(Section):
    log_every: PositiveInt = 20
    """Updates between step events."""
    sample_every: NonNegativeInt = 500
    """Updates between sampled texts; 0 for none."""
    sample_prompt: str = "the company said"
    """Words that every sampled text goes on from."""
    sample_words: PositiveInt = 25
    """Words to sample."""
    signals: bool = True
    """Measure the training's health beside each step, for raylm diagnose; training is the same to the last bit."""
    sinks: tuple[Literal["wandb", "mlflow"], ...] = ()
    """Where figures go beside the run's folder: wandb, mlflow, or both. Each needs its package where the workers are,
    and takes its settings from its own environment variables."""
    plain_seconds: PositiveFloat = 10.0
    """Seconds between lines where the output is not a terminal."""


class ClusterConfig(Section):
    workers: Annotated[int | str, BeforeValidator(_workers)] = 1
    """Ray Train workers, one process each. MIN:MAX, as in 1:4: as many of them as the cluster has room for, fewer when
    nodes go and more when nodes come; the global batch stays the same."""
    replicas: PositiveInt | None = None
    """Replicas of the model in each worker: GPUs, or logical CPU devices where there is none. Default: every GPU
    that each node has, else 1."""
    cpus_per_worker: PositiveFloat = 1.0
    """Cores that each worker asks Ray for."""
    exact_elastic: bool = False
    """End in the same state to the last bit, on any number of replicas of all workers up to virtual_shards, a number
    that may change from resume to resume. The step takes longer (README), and beyond two replicas sums replicas / 2
    times the bytes. Exact on processors of one kind only."""
    virtual_shards: int = 4
    """exact_elastic: shards of the global batch, a power of two, computed one by one and summed in a fixed order. Each
    number of shards has an end of its own."""
    pack_bytes: NonNegativeInt = 16 * 2**20
    """Bytes of gradients that are put together before their sum over the replicas begins; 0: all of them at once."""
    compress: Literal["none", "int16"] = "none"
    """int16: gradients are summed over the replicas in 16 bits, a unit for each 256 numbers; what rounding leaves out
    each replica adds to its next gradient, and keeps in checkpoints (4 bytes a parameter and replica). Pays where the
    network is slow; not with exact_elastic."""
    address: str | None = None
    """Ray cluster to use; default $RAY_ADDRESS, else Ray is started on this machine and stopped at the end."""
    max_failures: NonNegativeInt = 3
    """Failures in a row, no newer checkpoint between them, after each of which the workers are started anew from the
    newest checkpoint; one more ends the run. Every newer checkpoint and every `raylm resume` begin to count afresh;
    nodes that are drained do not count."""
    wait_for_room: NonNegativeFloat = 1800.0
    """Seconds to wait for nodes where too few are there for the workers, before the run ends as interrupted. A cloud's
    machine takes minutes to start and to install everything."""

    @property
    def fewest_workers(self) -> int:
        return int(str(self.workers).partition(":")[0])

    @property
    def most_workers(self) -> int:
        return int(str(self.workers).rpartition(":")[2])

    @model_validator(mode="after")
    def _compresses_or_is_exact(self) -> ClusterConfig:
        if self.exact_elastic and self.compress != "none":
            raise ValueError(
                "exact_elastic holds on any number of replicas, compress rounds on each: ask for one of them"
            )
        return self

    @field_validator("virtual_shards")
    @classmethod
    def _is_power_of_two(cls, shards: int) -> int:
        if shards < 1 or shards & (shards - 1):
            raise ValueError("expected a power of two, as in 4")
        return shards

    @property
    def fixed_shards(self) -> int | None:
        """The virtual shards of an exact-elastic run; None for one shard a replica."""
        return self.virtual_shards if self.exact_elastic else None


class RunConfig(Section):
    recipe: str = "quick"
    """The recipe this configuration started from."""
    name: str | None = Field(None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Name of the run's folder; default the recipe and the time."""
    storage_path: str = "runs"
    """Folder or URI (s3://, gs://) that holds the run folders; $RAYLM_STORAGE_PATH where it is set. Every worker must
    reach it."""
    seed: NonNegativeInt = Field(0, lt=2**63)
    """Seed of the initial weights, the dropout masks, the order and the sampled texts."""
    epochs: PositiveInt = 13
    """Passes over the training data."""
    steps: PositiveInt | None = None
    """Updates to stop after; default as many as the epochs have."""
    start_from: str | None = None
    """A run on the same text, or one of its checkpoints: its weights, at its best epoch, are this run's first ones."""
    stop_early: bool = False
    """End after the first epoch whose validation loss is above the lowest of all but the last `optimizer.patience`."""
    steps_per_call: PositiveInt = 1
    """Updates made in one call of the compiled function where nothing is due between them and windows are all of one
    width: less time of the host for each. A step takes twice as long to compile."""
    drill: tuple[str, ...] = ()
    """Faults to inject, KIND@STEP or KIND@STEP:WHERE each (`raylm drill` lists them)."""
    data: DataConfig = DataConfig()
    """What is read, and how."""
    model: ModelConfig = ModelConfig()
    """The network."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """The update."""
    schedule: ScheduleConfig = ScheduleConfig()
    """The learning rate over time."""
    guard: GuardConfig = GuardConfig()
    """What happens when a step goes wrong."""
    checkpoint: CheckpointConfig = CheckpointConfig()
    """When the state is saved."""
    report: ReportConfig = ReportConfig()
    """What is shown."""
    cluster: ClusterConfig = ClusterConfig()
    """Where it runs."""

    @property
    def heeds_validation(self) -> bool:
        """Whether the validation losses decide how the run goes on."""
        return self.stop_early or self.optimizer.averaging == "triggered"


FIXED = (
    *("recipe", "name", "storage_path", "seed", "start_from", "data.", "model."),
    *("optimizer.name", "optimizer.averaging"),
)
"""What a run is made of: keys, or sections of them, that stay as they are when it goes on."""

_FREE = ("data.data_dir", "data.cache_dir", "model.kernel", "model.jit")  # where the data lie, how it is computed


def is_fixed(key: str) -> bool:
    """Whether a dotted key is of what a run is made of."""
    return key.startswith(FIXED) and key not in _FREE


SHORTCUTS: dict[str, str] = {
    "data.corpus": "corpus",
    "data.data_dir": "data-dir",
    "data.cache_dir": "cache-dir",
    "schedule.learning_rate": "learning-rate",
    "checkpoint.every": "checkpoint-every",
    "cluster.workers": "workers",
    "cluster.replicas": "replicas",
    "cluster.exact_elastic": "exact-elastic",
}
"""Short option names for the fields that are typed most."""
