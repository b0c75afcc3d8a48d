"""Trains a language model on the Penn Treebank, or on the sample corpus where it cannot be had.

python jobs/train_ptb.py                          a small model, a few minutes on two cores
python jobs/train_ptb.py --recipe ptb-small       Zaremba et al. 2014, all 13 epochs
ray job submit -- python jobs/train_ptb.py        the same on a cluster
"""

import sys

from raylm.cli.main import guarded, leave
from raylm.cli.train import main

if __name__ == "__main__":
    leave(guarded(main, sys.argv[1:], "python jobs/train_ptb.py"))
