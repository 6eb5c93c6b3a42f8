"""Makes RecBole's atomic files from raw dumps, tables and published splits.

Nothing here knows a model or a split; training reads the files as if they had always been there.
"""
