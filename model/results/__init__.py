"""Results: a picture's segments, drawn and written for other programs."""
