"""Recommendations over HTTP: one model, one process, requests ranked together.

From the socket inwards: `protocol` and `limits` bound what a client may do, `app` reads requests
and words answers, `batching` gathers them for the one thread in which `answers` asks the model.
"""
