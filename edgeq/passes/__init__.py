"""Graph rewrites, one a file: model in, model out."""
