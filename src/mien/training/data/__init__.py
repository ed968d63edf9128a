"""Photo stores, augmentation and batches."""
