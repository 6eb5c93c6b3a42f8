"""ETEGRec with a decoder-only LLaMA, for RecBole."""

__version__ = "0.1.0"
