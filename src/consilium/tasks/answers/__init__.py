"""What every task shares whose answer is a label, or a path in a tree of labels."""
