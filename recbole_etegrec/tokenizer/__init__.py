"""From item embeddings to tuples of codes; users and sequences are unknown here."""

from recbole_etegrec.tokenizer.base import Tokenizer, TokenizerOutput
from recbole_etegrec.tokenizer.collisions import spread_collisions
from recbole_etegrec.tokenizer.health import CodeHealth
from recbole_etegrec.tokenizer.item_codes import (
    ItemCodes,
    default_code_num,
    default_tokenizer_epochs,
)
from recbole_etegrec.tokenizer.record import TokenizerOfRecord
from recbole_etegrec.tokenizer.residual_quantizer import Quantization, ResidualQuantizer
from recbole_etegrec.tokenizer.rqkmeans import RQKMeans
from recbole_etegrec.tokenizer.rqvae import RQVAE
from recbole_etegrec.tokenizer.trie import Trie
from recbole_etegrec.tokenizer.user_codes import UserCodes

__all__ = [
    "CodeHealth",
    "ItemCodes",
    "Quantization",
    "RQKMeans",
    "RQVAE",
    "ResidualQuantizer",
    "TOKENIZERS",
    "Tokenizer",
    "TokenizerOfRecord",
    "TokenizerOutput",
    "Trie",
    "UserCodes",
    "default_code_num",
    "default_tokenizer_epochs",
    "spread_collisions",
]

TOKENIZERS: dict[str, type[Tokenizer]] = {"rqvae": RQVAE, "rqkmeans": RQKMeans}
