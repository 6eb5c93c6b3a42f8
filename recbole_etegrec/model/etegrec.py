"""The published encoder-decoder systems, as RecBole models.

They differ from :class:`ETEGRecLlama` in their defaults alone: the backbone, what a training row
is, which stages there are. Tokenizer, codes, losses, schedule and ranking are the same, so that
a comparison is one of these.
"""

from recbole_etegrec.model.etegrec_llama import ETEGRecLlama


class ETEGRec(ETEGRecLlama):
    """ETEGRec (SIGIR 2025): a T5 whose tokenizer learns by turns with it.

    Its defaults are in ``properties/model/ETEGRec.yaml``.
    """


class TIGER(ETEGRec):
    """TIGER (NeurIPS 2023): the same T5 on codes that stay as they were pretrained.

    Its defaults are in ``properties/model/TIGER.yaml``.
    """
