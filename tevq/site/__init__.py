"""The web site: the study to read, and its networks to play with in a browser."""
