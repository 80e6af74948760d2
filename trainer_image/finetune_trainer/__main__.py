"""`python -m finetune_trainer`: which version this is and which stages it has."""

import argparse

from finetune_trainer import __version__


def main() -> None:
    """Print the version, or say how a stage is started."""
    parser = argparse.ArgumentParser(
        prog="finetune_trainer",
        description="A stage runs as `python -m finetune_trainer.STAGE`, "
        "where STAGE is prepare, train, evaluate or export.",
    )
    parser.add_argument("--version", action="version", version=f"finetune-trainer {__version__}")
    parser.parse_args()
    parser.print_help()


if __name__ == "__main__":
    main()
