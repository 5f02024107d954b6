"""Small trained models of our own, each with the script that builds it; see README.md."""
