"""The network."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from raylm.config.section import Section

Rate = Annotated[float, Field(ge=0.0, lt=1.0)]
"""A share that is dropped."""


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
    kernel: Literal["auto", "loop", "fused", "cudnn"] = "auto"
    """What computes a layer in training. fused: a loop over time, its gradient written out, one product for each
    weight. loop: the same with TensorFlow's own gradient, slower: a check. cudnn: NVIDIA's library, on GPUs, for plain
    cells in float32 or tf32, without jit and exact_elastic. auto: cudnn where it can be had and its trial at the start
    agrees with fused; else fused."""
    jit: bool = False
    """Compile the loops over time with XLA: some seconds at the start, and again for each width of sentences."""
    tie_weights: bool = False
    """The softmax's matrix is the embedding (Press and Wolf 2017)."""
    loss_chunk: PositiveInt | Literal["auto"] | None = "auto"
    """Words whose logits are computed at once, for all rows: fewer take less memory and a fourth matrix product. auto:
    all, where 64 MiB hold them, else as many as 16 MiB hold; none: all."""
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

    @property
    def not_for_cudnn(self) -> str | None:
        """The first option that cuDNN's layer cannot serve; none where it can compute this network."""
        narrow = self.precision in ("bfloat16", "float16")  # cuDNN's gates and cells would have 16 bits too
        asked = {
            "peepholes": self.peepholes,
            "projection": self.projection,
            "mogrifier_rounds": self.mogrifier_rounds,
            "jit": self.jit,
            f"precision {self.precision}": narrow,
        }
        return next((f"model.{name}" for name, is_asked in asked.items() if is_asked), None)

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
