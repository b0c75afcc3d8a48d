"""raylm trains LSTM language models across many GPUs on Ray.

Floors, each importing only those below it:

    6 cli          one file a command
    5 cluster      the only importer of Ray
    4 training     batch → step → outcome → decision → save → report
    3 guard        judge a step · checkpoint: atomic verified store · observe: events, live view
    2 model        LSTM kernels, language model, loss · optim: updates, clipping, schedules
    1 data         corpora, vocabulary, shards, order, streams (no TensorFlow)
    0 config       one frozen typed tree · recipes
"""

__version__ = "0.1.0"
