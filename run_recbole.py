"""Train and test one model: ``python run_recbole.py --model=ETEGRecLlama --dataset=ml-100k``."""

import sys

from recbole_etegrec.cli import main

if __name__ == "__main__":
    sys.exit(main(default="run"))
