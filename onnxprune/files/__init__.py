"""What makes a model on disk: its bytes, the files beside it, the order of its nodes, how it is written."""
