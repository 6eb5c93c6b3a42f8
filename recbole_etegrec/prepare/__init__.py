"""How a dataset becomes RecBole's atomic files: fetched by its name, or made from a raw dump.

Nothing here knows a model or a split; training reads the files as if they had always been there.
"""
