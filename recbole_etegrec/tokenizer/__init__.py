"""From item embeddings to tuples of codes; users and sequences are unknown here."""

from recbole_etegrec.tokenizer.item_codes import ItemCodes
from recbole_etegrec.tokenizer.residual_quantizer import Quantization, ResidualQuantizer
from recbole_etegrec.tokenizer.rqvae import RQVAE, TokenizerOutput
from recbole_etegrec.tokenizer.trie import Trie

__all__ = ["ItemCodes", "Quantization", "RQVAE", "ResidualQuantizer", "TokenizerOutput", "Trie"]
