"""Raw corpora -> data directories, one module per corpus."""

__all__: list[str] = []
