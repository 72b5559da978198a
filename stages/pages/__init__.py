"""What reports are drawn with."""
