"""Building blocks that networks of several methods share; none of them knows a method. Importing one needs torch."""
