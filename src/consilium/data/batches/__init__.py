"""From cases to batches on the device."""
