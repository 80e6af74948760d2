"""`python -m finetune_operator`: the operator process."""

import sys

from finetune_operator.controllers import build_controllers
from finetune_operator.main import run

if __name__ == "__main__":
    sys.exit(run(sys.argv[1:], build_controllers))
