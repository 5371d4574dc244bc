"""What a council is worth from the image to the answer: figures of its cases, and their report."""
