"""Train and tune: python train.py -c configs/fashion_mnist.yaml configs/Ours_HDLR.yaml"""

import sys

from hyperopt_id.cli import train

if __name__ == "__main__":
    sys.exit(train())
