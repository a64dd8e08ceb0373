"""Card, report and the words in them."""
