"""`python -m finetune_operator`: the operator with its product."""

import sys

from finetune_operator.main import run
from finetune_operator.product import product

if __name__ == "__main__":
    sys.exit(run(sys.argv[1:], product))
