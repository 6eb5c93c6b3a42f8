"""Training and evaluation; the only part that knows of devices and processes."""

from recbole_etegrec.trainer.trainer import ETEGRecTrainer

__all__ = ["ETEGRecTrainer"]
