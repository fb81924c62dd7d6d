"""Train and tune: python train.py -c configs/fashion_mnist.yaml configs/Ours_HDLR.yaml"""

import signal
import sys

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # torch takes seconds to load: Ctrl-C then is neither long nor lost

from hyperopt_id.cli import train

if __name__ == "__main__":
    sys.exit(train())
