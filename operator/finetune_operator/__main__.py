"""`python -m finetune_operator`: the operator with its product."""

import sys

from finetune_operator.controllers import controllers
from finetune_operator.main import run

if __name__ == "__main__":
    sys.exit(run(sys.argv[1:], controllers))
