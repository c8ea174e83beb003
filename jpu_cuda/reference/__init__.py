"""What each op means, in pure PyTorch: the fallback, and what every kernel is held against."""
