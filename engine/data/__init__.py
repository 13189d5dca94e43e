"""Hospital folders -> audited, split, cached uint8 images. Never imports torch."""
