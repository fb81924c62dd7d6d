"""Train and tune: python train.py -c configs/fashion_mnist.yaml configs/Ours_HDLR.yaml"""

import sys

try:
    from hyperopt_id.cli import train
except KeyboardInterrupt:  # torch takes seconds to load
    sys.exit(130)

if __name__ == "__main__":
    sys.exit(train())
