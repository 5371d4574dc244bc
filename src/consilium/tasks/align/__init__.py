"""The family ``align``: an image and a text encoder whose embeddings of a pair come to lie side by side."""
