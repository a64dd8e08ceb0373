"""From rows of a source to histories: mapping, cleaning, accounting, partitions, publication. No Ray."""
