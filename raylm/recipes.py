"""Named recipes: what a recipe changes of `RunConfig`'s defaults, its source and its expected figures."""

from __future__ import annotations

from typing import Any

Recipe = dict[str, Any]

# Zaremba, Sutskever and Vinyals 2014 (arXiv:1409.2329), "small": 121.4 valid / 115.9 test on PTB, 4.65 M parameters;
# measured here: 118.4 / 114.2.
# The loss is summed over time and averaged over lanes: learning rate 1, clip 5 here are 20, 0.25 under a token mean.
PTB_SMALL: Recipe = {
    "epochs": 13,
    "data": {"lanes": 20, "window": 20},
    "model": {"layers": 2, "hidden": 200, "dropout": 0.0, "init_scale": 0.1},
    "optimizer": {"name": "sgd", "clip_norm": 5.0, "loss_scale": "sequence_sum"},
    "schedule": {"kind": "held", "learning_rate": 1.0, "held_epochs": 4, "divisor": 2.0},
}

# The same paper's "medium": 86.2 / 82.1, 19.8 M parameters.
PTB_MEDIUM: Recipe = {
    "epochs": 39,
    "data": {"lanes": 20, "window": 35},
    "model": {"layers": 2, "hidden": 650, "dropout": 0.5, "init_scale": 0.05},
    "optimizer": {"name": "sgd", "clip_norm": 5.0, "loss_scale": "sequence_sum"},
    "schedule": {"kind": "held", "learning_rate": 1.0, "held_epochs": 6, "divisor": 1.2},
}

# The same paper's "large": 82.2 / 78.3, 66.0 M parameters.
PTB_LARGE: Recipe = {
    "epochs": 55,
    "data": {"lanes": 20, "window": 35},
    "model": {"layers": 2, "hidden": 1500, "dropout": 0.65, "init_scale": 0.04},
    "optimizer": {"name": "sgd", "clip_norm": 10.0, "loss_scale": "sequence_sum"},
    "schedule": {"kind": "held", "learning_rate": 1.0, "held_epochs": 14, "divisor": 1.15},
}

# AWD-LSTM: Merity, Keskar and Socher 2017 (arXiv:1708.02182), the parts and numbers for PTB: 61.2 / 58.8, 24 M
# parameters; `ptb-awd-finetune` goes on to 58.8 / 56.5, `raylm eval --cache` to 53.2 / 52.5. On WikiText-2 it has 80
# lanes, input_dropout .65, dropout .2 and 750 epochs. With --model.mogrifier-rounds 5 it is a Mogrifier, but not that
# of Melis et al. 2020 (arXiv:1909.01792): theirs has gates of rank 84, RMSProp, capped input gates, skip connections.
PTB_AWD: Recipe = {
    "epochs": 500,
    "data": {"lanes": 20, "window": 70, "jitter": True},
    "model": {
        "layers": 3,
        "hidden": 1150,
        "embedding": 400,
        "tie_weights": True,
        "init": "awd",
        "init_scale": 0.1,
        "embedding_dropout": 0.1,
        "input_dropout": 0.4,
        "dropout": 0.25,
        "output_dropout": 0.4,
        "locked_dropout": True,
        "recurrent_dropout": 0.5,
        "activation_regularization": 2.0,
        "temporal_regularization": 1.0,
    },
    "optimizer": {
        "name": "sgd",
        "clip_norm": 0.25,
        "loss_scale": "token_mean",
        "weight_decay": 1.2e-6,
        "averaging": "triggered",
        "patience": 5,
    },
    "schedule": {"kind": "constant", "learning_rate": 30.0},
}

# Its fine-tuning (section 5): averaged SGD from the best weights (--start-from RUN) until the same rule ends it.
PTB_AWD_FINETUNE: Recipe = {
    **PTB_AWD,
    "optimizer": {**PTB_AWD["optimizer"], "averaging": "always"},
    "stop_early": True,
}

# Jozefowicz et al. 2016 (arXiv:1602.02410), LSTM-2048-512 on the One Billion Word benchmark: 48.7 held-out with 800,000
# words. Give the text with --corpus and the words with --data.vocabulary-size; 256 lanes are one GPU's. Without that
# text: jobs/zipf_corpus.py makes one of 115,000 words in 13 shards, and says how to train on it.
LM1B: Recipe = {
    "epochs": 5,
    "data": {"lanes": 256, "window": 20, "vocabulary_size": 800_000, "order": "chunk"},
    "model": {
        "layers": 1,
        "hidden": 2048,
        "projection": 512,
        "dropout": 0.1,
        "init_scale": 0.05,
        "forget_bias": 1.0,
        "sampled_softmax": 8192,
    },
    "optimizer": {
        "name": "adagrad",
        "accumulator": 1.0,
        "clip_norm": 10.0,
        "clip_of": "layers",
        "loss_scale": "sequence_sum",
        "averaging": "exponential",
        "averaging_decay": 0.999,
    },
    "schedule": {"kind": "constant", "learning_rate": 0.2},
}

# The first run of a newcomer: ptb-small's network, two minutes on two cores, far past the unigram floor on any corpus.
# Measured: 197 valid / 192 test on PTB, 82 / 82 on the sample.
QUICK: Recipe = {
    **PTB_SMALL,
    "steps": 2000,
    "schedule": {"kind": "cosine", "learning_rate": 1.0, "warmup_steps": 100, "final_fraction": 0.02},
}

# One peephole LSTM layer over padded sentences, the mean over their real targets, Adam .01, no clip: healthy. Measured:
# 168 valid / 159 test on PTB after 2,000 updates; a sentence's first word is given, so these are not the literature's.
# Its sick variants: --drill explosion@300:sticky, no-target@300:sticky, bad-id@300:sticky.
SENTENCE_PEEPHOLE: Recipe = {
    "epochs": 2,
    "data": {"mode": "sentences", "lanes": 32},
    "model": {"layers": 1, "hidden": 128, "init_scale": 0.1, "forget_bias": 1.0, "peepholes": True},
    "optimizer": {"name": "adam", "clip_norm": None, "loss_scale": "token_mean"},
    "schedule": {"kind": "constant", "learning_rate": 0.01},
}

# Next word on PTB: 10,000 words, batch 64, learning rate 1 · 0.1^⌊step / 5000⌋, plain SGD on the mean over tokens:
# healthy, and slow. Measured: 480 valid / 465 test on PTB after 1,200 updates. Its sick variant: --optimizer.name adam.
PTB_NEXT_WORD: Recipe = {
    "epochs": 10,
    "data": {"lanes": 64, "window": 20},
    "model": {"layers": 1, "hidden": 200, "init_scale": 0.1},
    "optimizer": {"name": "sgd", "clip_norm": None, "loss_scale": "token_mean"},
    "schedule": {"kind": "staircase", "learning_rate": 1.0, "decay_steps": 5000, "decay_rate": 0.1},
}

# Any file, byte by byte: nothing is unknown. Measured on PTB's files: perplexity 4.15 valid / 4.04 test, or 2.05 / 2.02
# bits a byte; the bigram floor, that of pairs of bytes, is 11.6, passed within 300 updates.
BYTES: Recipe = {
    "epochs": 5,
    "steps": 3000,
    "data": {"tokenizer": "bytes", "lanes": 32, "window": 64},
    "model": {"layers": 1, "hidden": 256, "init_scale": 0.05, "forget_bias": 1.0},
    "optimizer": {"name": "adam", "clip_norm": 1.0, "loss_scale": "token_mean"},
    "schedule": {"kind": "cosine", "learning_rate": 0.003, "warmup_steps": 100, "final_fraction": 0.02},
    "report": {"sample_words": 200},
}

RECIPES: dict[str, Recipe] = {
    "quick": QUICK,
    "ptb-small": PTB_SMALL,
    "ptb-medium": PTB_MEDIUM,
    "ptb-large": PTB_LARGE,
    "ptb-awd": PTB_AWD,
    "ptb-awd-finetune": PTB_AWD_FINETUNE,
    "lm1b": LM1B,
    "sentence-peephole": SENTENCE_PEEPHOLE,
    "ptb-next-word": PTB_NEXT_WORD,
    "bytes": BYTES,
}
